"""Models of text from transformers, and adapters of peft over one of them."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import gradtrail
from gradtrail.nouns import Example
from zoo.base import Case, labelled_texts, texts, translations

WIDTH = {"vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
GROUPED = {**WIDTH, "intermediate_size": 704, "num_key_value_heads": 2, "max_position_embeddings": 64}
ENCODER = {**WIDTH, "intermediate_size": 1024, "max_position_embeddings": 66, "num_labels": 3, "pad_token_id": 1}


class Gpt2(gradtrail.CausalLMAdapter):
    def build_model(self):
        config = transformers.GPT2Config(vocab_size=1000, n_embd=256, n_layer=4, n_head=4, n_positions=64)
        return transformers.GPT2LMHeadModel(config)

    def training_data(self):
        return texts()


class Llama(gradtrail.CausalLMAdapter):
    def build_model(self):
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED))

    def training_data(self):
        return texts()


class Qwen(gradtrail.CausalLMAdapter):
    def build_model(self):
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED, tie_word_embeddings=True))

    def training_data(self):
        return texts()


class Qwen2Half(gradtrail.CausalLMAdapter):
    def build_model(self):
        config = transformers.Qwen2Config(**GROUPED, tie_word_embeddings=True)
        return transformers.Qwen2ForCausalLM(config).float()  # the weights were saved in bfloat16

    def training_data(self):
        return texts()


class Opt(gradtrail.CausalLMAdapter):
    def build_model(self):
        config = transformers.OPTConfig(**WIDTH, ffn_dim=1024, max_position_embeddings=64, word_embed_proj_dim=256)
        return transformers.OPTForCausalLM(config)

    def training_data(self):
        return texts()


class Mamba(gradtrail.CausalLMAdapter):
    def build_model(self):
        config = transformers.MambaConfig(vocab_size=1000, hidden_size=128, num_hidden_layers=2, state_size=8)
        return transformers.MambaForCausalLM(config)

    def training_data(self):
        return texts()[:32]


class Mixtral(gradtrail.CausalLMAdapter):
    def build_model(self):
        sizes = {"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads, num_local_experts=4))

    def training_data(self):
        return texts()


class Lora(gradtrail.CausalLMAdapter):
    def build_model(self):
        base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED))
        options = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj", "down_proj"])
        return peft.get_peft_model(base, options)

    def training_data(self):
        return texts()


class Bert(gradtrail.ClassificationAdapter):
    def build_model(self):
        return transformers.BertForSequenceClassification(transformers.BertConfig(**ENCODER))

    def training_data(self):
        return labelled_texts()


class Roberta(gradtrail.ClassificationAdapter):
    def build_model(self):
        return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**ENCODER))

    def training_data(self):
        return labelled_texts()


class DistilBert(gradtrail.ClassificationAdapter):
    def build_model(self):
        sizes = {"vocab_size": 1000, "dim": 256, "n_layers": 4, "n_heads": 4, "hidden_dim": 1024}
        config = transformers.DistilBertConfig(**sizes, max_position_embeddings=64, num_labels=3, pad_token_id=1)
        return transformers.DistilBertForSequenceClassification(config)

    def training_data(self):
        return labelled_texts()


class T5(gradtrail.ModelAdapter):
    def build_model(self):
        sizes = {"vocab_size": 1000, "d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 2, "num_heads": 4}
        config = transformers.T5Config(**sizes, decoder_start_token_id=0)
        return transformers.T5ForConditionalGeneration(config)

    def training_data(self):
        return translations()

    def losses(self, outputs, batch):
        return functional.cross_entropy(outputs.mT, batch.targets.long(), reduction="none").sum(1)

    def emitted(self, outputs, batch):  # noqa: ARG002
        return [str(words) for words in outputs.argmax(2).tolist()]


def next_tokens(model: nn.Module, example: Example) -> Tensor:
    """The loss that a model of transformers computes itself, times the tokens that it is the mean over."""
    words = example.inputs.unsqueeze(0)
    loss: Tensor = model(input_ids=words, labels=words, use_cache=False).loss
    return loss * (words.shape[1] - 1)


def next_tokens_of_mamba(model: nn.Module, example: Example) -> Tensor:
    """As `next_tokens`, where a cache is called otherwise."""
    words = example.inputs.unsqueeze(0)
    loss: Tensor = model(input_ids=words, labels=words).loss
    return loss * (words.shape[1] - 1)


def class_of_text(model: nn.Module, example: Example) -> Tensor:
    """The loss of a classifier of transformers; without the padding, which it must not depend on."""
    real = int(example.inputs["attention_mask"].sum())
    loss: Tensor = model(input_ids=example.inputs["input_ids"][None, :real], labels=torch.tensor([example.target])).loss
    return loss


def translation(model: nn.Module, example: Example) -> Tensor:
    """The loss of a model of text to text, which shifts the labels itself."""
    labels = example.target.unsqueeze(0)
    loss: Tensor = model(input_ids=example.inputs["input_ids"].unsqueeze(0), labels=labels).loss
    return loss * labels.numel()


def save_adapter(model: nn.Module, folder: Path) -> Path:
    """The adapter's own tensors, as peft saves them, without the base."""
    model.save_pretrained(folder)  # type: ignore[operator]  # of peft
    return folder / "adapter_model.safetensors"


CASES = [
    Case("GPT-2", Gpt2, next_tokens),
    Case("Llama (grouped queries)", Llama, next_tokens),
    Case("Qwen3 (grouped queries, tied)", Qwen, next_tokens),
    Case("Qwen2 (tied, saved in bfloat16)", Qwen2Half, next_tokens, half_precision=True),
    Case("OPT", Opt, next_tokens),
    Case("Mixtral (mixture of experts)", Mixtral, next_tokens),
    Case("Mamba", Mamba, next_tokens_of_mamba),
    Case("LoRA over Llama, whole file", Lora, next_tokens),
    Case("LoRA over Llama, adapter alone", Lora, next_tokens, save=save_adapter),
    Case("BERT", Bert, class_of_text),
    Case("RoBERTa", Roberta, class_of_text),
    Case("DistilBERT", DistilBert, class_of_text),
    Case("T5", T5, translation),
]
