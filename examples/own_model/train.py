"""Train as you always do; `gradtrail.register` at the end is the one line that is new."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch
from torch import nn
from tumours import TRAINING_COUNT, TumourAdapter, load_data

import gradtrail

torch.manual_seed(0)
adapter = TumourAdapter()
model = adapter.build_model()
inputs, labels = load_data()
optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(200):
    optimiser.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs[:TRAINING_COUNT]), torch.tensor(labels[:TRAINING_COUNT]))
    loss.backward()
    optimiser.step()

version = gradtrail.register(model, adapter=adapter, name="tumours", alias="champion")
print(f"registered {version.model_version_id}")

# What production would write: one record for each output, as Parquet or JSON Lines.
started = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
with torch.no_grad():
    predictions = model(inputs[TRAINING_COUNT:]).argmax(1).tolist()
with Path("outputs.jsonl").open("w") as file:
    for row, prediction in enumerate(predictions[:20]):
        record = {
            "record_id": f"case-{row:03d}",
            "model": version.name,
            "version": version.version,
            "time": (started + timedelta(minutes=row)).isoformat(),
            "inputs": inputs[TRAINING_COUNT + row].tolist(),
            "prediction": adapter.class_names[prediction],
            "label": adapter.class_names[labels[TRAINING_COUNT + row]],
        }
        file.write(json.dumps(record) + "\n")
print("wrote outputs.jsonl")
