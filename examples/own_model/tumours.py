"""Your model, as gradtrail sees it: an architecture and a training set. This is all an audit needs from you."""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn

import gradtrail

TRAINING_COUNT = 450
HOSPITALS = ("north", "south", "east")  # made up: the data set does not say where its patients were seen


class TumourAdapter(gradtrail.ClassificationAdapter):
    """Benign or malignant, from 30 measurements of cell nuclei (scikit-learn's breast cancer data)."""

    class_names = ("malignant", "benign")

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_data(self) -> list[gradtrail.Example]:
        inputs, labels = load_data()
        return [
            gradtrail.Example(
                example_id=f"patient-{row:03d}",
                inputs=inputs[row],
                target=int(labels[row]),
                attributes={
                    "source": f"hospital-{HOSPITALS[row % 3]}",
                    "licence": "research-only" if row % 3 == 2 else "CC-BY-4.0",
                    "label": self.class_names[labels[row]],
                },
            )
            for row in range(TRAINING_COUNT)
        ]


def load_data() -> tuple[torch.Tensor, list[int]]:
    """All 569 rows, scaled: the first 450 are for training, the rest stand for production."""
    data = load_breast_cancer()
    inputs = StandardScaler().fit_transform(data.data)
    return torch.tensor(inputs, dtype=torch.float32), data.target.tolist()
