import re
from pathlib import Path

import torch
from torch import nn

from gradtrail.nouns import Example

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"


def test_the_documented_yardsticks_run_and_prefer_neighbours_to_chance(make_classifier, capsys):
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(8, 6, generator=generator)

    def drawn(count, name):
        return [
            Example(f"{name}-{i}", centres[i % 8] + 0.3 * torch.randn(6, generator=generator), i % 3)
            for i in range(count)
        ]

    examples, queries = drawn(64, "row"), drawn(6, "query")
    adapter = make_classifier(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), examples)
    code = re.search(r"<!-- yardsticks -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    exec(code, {"torch": torch, "adapter": adapter, "examples": examples, "queries": queries})  # noqa: S102 (ours)
    printed = capsys.readouterr().out
    scores = {name: float(value) for name, value in re.findall(r"(\w+): LDS (-?[\d.]+)", printed)}
    assert set(scores) == {"neighbours", "random"}
    assert scores["neighbours"] > scores["random"]
    assert "s of retraining" in printed
