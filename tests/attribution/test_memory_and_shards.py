from __future__ import annotations

import pytest
import torch
from torch import nn

from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import compute_features, iterate_features
from gradtrail.attribution.gradients.fallback import AttributionWarning
from gradtrail.attribution.gradients.memory import PassMemory, choose_batch_size, measure_memory
from gradtrail.attribution.gradients.shards import Shard
from gradtrail.errors import DataError, ModelError, UsageError
from gradtrail.nouns import Example

PROJECTED = FeatureSettings(group_dimension=36)


def peak_bytes(run) -> int:
    """What torch's own allocator had in use at most while `run` ran, beyond what it had before."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    in_use = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    return peak


def wide_perceptron() -> nn.Module:
    layers = [layer for _ in range(4) for layer in (nn.Linear(512, 512), nn.LayerNorm(512), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(512, 5))


@pytest.mark.parametrize("batch_size", [32, 128])
def test_the_estimate_is_close_to_what_the_allocator_sees(batch_size, make_classifier, make_examples):
    examples = make_examples(batch_size, 16, 512)
    adapter = make_classifier(lambda: nn.Sequential(wide_perceptron(), nn.Flatten(), nn.Linear(80, 5)), examples)
    model = adapter.build_model()
    plan = plan_features(model, PROJECTED)
    memory = measure_memory(adapter, model, examples[:3], plan)
    seen = peak_bytes(lambda: compute_features(adapter, model, examples, plan))
    assert 0.7 < memory.peak(batch_size) / seen < 1.6


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recur, self.read = nn.LSTM(16, 128, batch_first=True), nn.Linear(128, 5)

    def forward(self, inputs):
        return self.read(self.recur(inputs)[0][:, -1])


class Multiplying(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.read = nn.Parameter(torch.randn(16, 512)), nn.Linear(512, 5)

    def forward(self, inputs):
        return self.read((inputs @ self.matrix)[:, -1])


@pytest.mark.parametrize("kind", [Recurrent, Multiplying])
def test_what_parameters_without_a_rule_take_is_in_the_estimate(kind, make_classifier, make_examples):
    examples = make_examples(24, 10, 16)
    adapter = make_classifier(kind, examples)
    model = adapter.build_model()
    plan = plan_features(model, PROJECTED)
    memory = measure_memory(adapter, model, examples[:3], plan)
    seen = peak_bytes(lambda: compute_features(adapter, model, examples, plan))
    assert 0.5 < memory.peak(24) / seen < 2


def test_the_largest_example_decides(make_classifier, make_examples):
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(3, 5)

        def forward(self, inputs):
            return self.read(inputs).sin().sum(1)

    short, long = make_examples(2, 4, 3), make_examples(1, 400, 3)
    adapter = make_classifier(Pooled, short)
    model = adapter.build_model()
    plan = plan_features(model)
    alone = measure_memory(adapter, model, long, plan).example_bytes
    assert measure_memory(adapter, model, [short[0], *long, short[1]], plan).example_bytes == alone
    assert alone > 50 * measure_memory(adapter, model, short, plan).example_bytes / 2


def test_parameters_that_cost_a_pass_per_example_are_named_in_the_estimate(make_classifier, make_examples):
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.read = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 5)

        def forward(self, inputs):
            hidden = inputs @ self.matrix
            return self.read(hidden if hidden.sum() > -1e9 else -hidden)

    examples = make_examples(3, 3)
    adapter = make_classifier(Deciding, examples)
    model = adapter.build_model()
    slow = measure_memory(adapter, model, examples, plan_features(model)).one_at_a_time
    assert slow == ("matrix",)
    fast = plan_features(model, FeatureSettings(fallback=False))
    assert measure_memory(adapter, model, examples, fast).one_at_a_time == ()


def test_a_memory_estimate_needs_an_example(perceptron):
    adapter, model, _ = perceptron
    with pytest.raises(DataError, match="without examples"):
        measure_memory(adapter, model, [], plan_features(model))


@pytest.mark.parametrize(
    ("memory", "budget", "most", "expected"),
    [
        (PassMemory(0, 10), 1000, 256, 100),
        (PassMemory(500, 10), 1000, 256, 50),
        (PassMemory(500, 10), 10**9, 256, 256),
        (PassMemory(990, 10), 1000, 256, 1),
        (PassMemory(0, 10, whole_bytes=45), 1000, 256, 10),
        (PassMemory(0, 1, whole_bytes=10**9), 2 * 10**9 + 50, 256, 50),
    ],
)
def test_the_batch_is_the_largest_that_fits(memory, budget, most, expected):
    found = choose_batch_size(memory, budget, most)
    assert found == expected
    assert memory.peak(found) <= budget


def test_a_budget_below_one_example_says_what_is_needed():
    with pytest.raises(UsageError, match="budget of 1 MB is too small: one example takes 12 MB"):
        choose_batch_size(PassMemory(2 * 10**6, 10**7), 10**6)


def fail_above(adapter, most, fault):
    """The adapter, on a device that holds `most` examples."""
    sizes = []

    def outputs(model, batch):
        sizes.append(len(batch.inputs))
        if len(batch.inputs) > most:
            raise fault
        return type(adapter).outputs(adapter, model, batch)

    adapter.outputs = outputs
    return sizes


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"),
    ],
    ids=["cuda", "cpu", "mps"],
)
def test_a_batch_that_does_not_fit_is_halved_and_no_row_is_lost(perceptron, fault):
    adapter, model, examples = perceptron
    plan = plan_features(model, PROJECTED)
    whole = compute_features(adapter, model, examples, plan)
    sizes = fail_above(adapter, 3, fault)
    with pytest.warns(AttributionWarning, match="going on with"):
        parts = list(iterate_features(adapter, model, examples, plan, batch_size=12))
    assert sizes[-6:] == [12, 6, 3, 3, 3, 3]
    assert [name for part in parts for name in part.example_ids] == whole.example_ids
    assert torch.allclose(torch.cat([part.vectors for part in parts]), whole.vectors, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:A batch of")
def test_an_example_that_does_not_fit_alone_is_named(perceptron):
    adapter, model, examples = perceptron
    fail_above(adapter, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(ModelError, match="Example example-000 alone does not fit into memory"):
        list(iterate_features(adapter, model, examples, plan_features(model), batch_size=4))


def test_another_runtime_error_is_not_taken_for_one_of_memory(perceptron):
    adapter, model, examples = perceptron
    sizes = fail_above(adapter, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(iterate_features(adapter, model, examples, plan_features(model), batch_size=4))
    assert sizes == [1, 4]  # one example, to see how it is measured; then the batch, once


@pytest.mark.parametrize("count", [1, 3, 5])
def test_shards_measured_apart_give_the_rows_of_the_whole(network, count):
    adapter, model, examples = network
    plan = plan_features(model, PROJECTED)
    whole = compute_features(adapter, model, examples, plan)
    expected = dict(zip(whole.example_ids, whole.vectors, strict=True))
    found = {}
    for number in range(1, count + 1):
        shard = Shard(number, count)
        for rows in iterate_features(adapter, model, examples, plan, batch_size=4, shard=shard):
            found |= dict(zip(rows.example_ids, rows.vectors, strict=True))
    assert set(found) == set(expected)
    for name, vector in expected.items():
        assert (found[name] - vector).norm() <= 1e-5 * vector.norm()


def test_a_shard_reads_only_its_own_examples():
    read = []

    class Data:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, position: int) -> Example:
            read.append(position)
            return Example(str(position), position, 0)

    assert [example.example_id for example in Shard(2, 3).examples(Data())] == ["1", "4", "7"]
    assert read == [1, 4, 7]
    assert [position for position in range(8) if Shard(2, 3).holds(position)] == read


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "a/b", "1/0", "-1/3", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UsageError, match="shard"):
        Shard.of_text(text)


def test_a_shard_is_read_from_text():
    assert Shard.of_text("2/3") == Shard(2, 3)
