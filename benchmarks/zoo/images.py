"""Models of images from transformers and timm."""

from __future__ import annotations

import timm
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import gradtrail
from gradtrail.nouns import Example
from zoo.base import Case, images


class VisionTransformer(gradtrail.ClassificationAdapter):
    def build_model(self):
        sizes = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
        config = transformers.ViTConfig(**sizes, image_size=64, patch_size=8, num_labels=10)
        return transformers.ViTForImageClassification(config)

    def training_data(self):
        return images(64)


class VisionTransformerOfTimm(gradtrail.ClassificationAdapter):
    def build_model(self):
        sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 4, "num_heads": 3}
        return timm.models.VisionTransformer(**sizes, num_classes=10)

    def training_data(self):
        return images(64)


class ResNet(gradtrail.ClassificationAdapter):
    def build_model(self):
        return timm.create_model("resnet18", num_classes=10)

    def training_data(self):
        return images(64)


class ResNetOfTransformers(gradtrail.ClassificationAdapter):
    def build_model(self):
        sizes = {"embedding_size": 32, "hidden_sizes": [64, 128, 256], "depths": [1, 1, 1], "layer_type": "basic"}
        return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=10))

    def training_data(self):
        return images(64)


class ConvNext(gradtrail.ClassificationAdapter):
    def build_model(self):
        return timm.create_model("convnext_atto", num_classes=10)

    def training_data(self):
        return images(64)


class ConvNextOfTransformers(gradtrail.ClassificationAdapter):
    def build_model(self):
        sizes = {"hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 2, 1]}
        return transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes, num_labels=10))

    def training_data(self):
        return images(64)


class EfficientNet(gradtrail.ClassificationAdapter):
    def build_model(self):
        return timm.create_model("efficientnet_b0", num_classes=10)

    def training_data(self):
        return images(64)


def class_of_image(model: nn.Module, example: Example) -> Tensor:
    """Cross entropy of one picture's class."""
    given = model(example.inputs.unsqueeze(0))
    return functional.cross_entropy(getattr(given, "logits", given), torch.tensor([example.target]))


CASES = [
    Case("ViT (transformers)", VisionTransformer, class_of_image),
    Case("ViT (timm)", VisionTransformerOfTimm, class_of_image),
    Case("ResNet-18 (timm)", ResNet, class_of_image),
    Case("ResNet (transformers)", ResNetOfTransformers, class_of_image),
    Case("ConvNeXt atto (timm)", ConvNext, class_of_image),
    Case("ConvNeXt (transformers)", ConvNextOfTransformers, class_of_image),
    Case("EfficientNet-B0 (timm)", EfficientNet, class_of_image),
]
