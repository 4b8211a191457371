"""Gradients of autograd, one example at a time, wherever the examples stand in a batch and in what its layers see."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrail.attribution.adapters.base import Batch, ClassificationAdapter
from gradtrail.attribution.adapters.causal_language_model import CausalLMAdapter
from gradtrail.attribution.adapters.layout import BatchLayout
from gradtrail.attribution.curvature.vectors import model_vectors
from gradtrail.attribution.features.plan import FeatureSettings, plan_features
from gradtrail.attribution.gradients.capture import iterate_features
from gradtrail.attribution.gradients.checks import check_capture, check_determinism
from gradtrail.attribution.gradients.forward_passes import hooked_forward
from gradtrail.attribution.gradients.tracked_model import track_model
from gradtrail.errors import AttributionWarning
from gradtrail.nouns import Example

LENGTH, WIDTH, WORDS = 6, 4, 9
SIZES = (1, 2, LENGTH, 7, 13)


class Texts(ClassificationAdapter):
    """Thirteen texts of six words, or of one to six, filled up with zeros."""

    input_dtype = torch.int64

    def __init__(self, build, ragged=False):
        self.build = build
        generator = torch.Generator().manual_seed(4)
        lengths = [1 + row % LENGTH if ragged else LENGTH for row in range(13)]
        self.examples = [
            Example(f"text-{row}", torch.randint(1, WORDS, (length,), generator=generator), row % 5)
            for row, length in enumerate(lengths)
        ]

    def build_model(self):
        torch.manual_seed(0)
        return self.build().eval()

    def training_data(self):
        return self.examples

    def collate(self, examples):
        words = nn.utils.rnn.pad_sequence([each.inputs for each in examples], batch_first=True)
        return Batch(self.inputs(words), torch.tensor([each.target for each in examples]))

    def inputs(self, words):
        return words


def assert_exact(adapter, autograd_vectors, slow=(), *, settings=None):
    """At every batch size each row is that of autograd, and `slow` are measured by it, with a notice."""
    model, examples = adapter.build_model(), adapter.training_data()
    check_determinism(adapter, model, examples[:8])
    for given in settings or (FeatureSettings(group_dimension=10**6), FeatureSettings(group_dimension=9)):
        plan = plan_features(model, given)
        assert plan.uncovered == ()
        expected = autograd_vectors(adapter, model, examples, plan)
        for size in SIZES:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", AttributionWarning)
                rows = iterate_features(adapter, model, examples, plan, batch_size=size)
                found = torch.cat([each.vectors for each in rows])
            said = " ".join(str(each.message).split(": measured by autograd")[0] for each in caught)
            # In a text of one word, a word and a text look the same.
            assert all(name in said for name in slow)
            assert slow or size == 1 or "measured by autograd" not in " ".join(str(each.message) for each in caught)
            for columns, group in zip(plan.slices, plan.groups, strict=True):
                wanted = expected[:, columns]
                assert wanted.norm() > 0, group.name
                assert (found[:, columns] - wanted).norm() < 1e-4 * wanted.norm(), (group.name, size)
        check_capture(adapter, model, examples, plan)


class Reader(nn.Module):
    """Words and something about their positions, which subclasses say: (positions, width), or with one row for all."""

    def __init__(self):
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, words: Tensor, *shared: Tensor) -> Tensor:
        hidden = self.mixed(torch.tanh(self.words(words) + self.places(words, *shared)))
        real = (words > 0).unsqueeze(2)
        return self.head((torch.tanh(hidden) * real).sum(1) / real.sum(1))

    def mixed(self, hidden: Tensor) -> Tensor:
        return self.mix(hidden)

    def places(self, words: Tensor, *shared: Tensor) -> Tensor:  # noqa: ARG002 (the interface)
        return torch.zeros(())


class Bare(Reader):
    """A bare parameter, looked up or multiplied by what the batch shares."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(LENGTH, WIDTH))

    def places(self, words, *shared):
        (given,) = shared
        return self.table[given] if given.ndim == 1 else given @ self.table[: words.shape[1]]


class SharingTexts(Texts):
    def __init__(self, build, shared, **options):
        super().__init__(build, **options)
        self.shared = shared

    def inputs(self, words):
        return (words, self.shared(words.shape[1]))


@pytest.mark.parametrize(
    "shared",
    [torch.arange, lambda length: torch.ones(length, length).tril()],
    ids=["positions", "a mask"],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_tensor_that_all_examples_share_is_not_cut_whatever_its_length(shared, ragged, autograd_vectors):
    assert_exact(SharingTexts(Bare, shared, ragged=ragged), autograd_vectors)


class Nodes(ClassificationAdapter):
    """Thirteen nodes of one graph, all of which every batch holds."""

    def __init__(self):
        generator = torch.Generator().manual_seed(2)
        self.facts = torch.randn(13, 3, generator=generator)
        self.edges = torch.rand(13, 13, generator=generator) / 13
        self.examples = [Example(f"node-{row}", row, row % 5) for row in range(13)]

    def build_model(self):
        class Graph(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight, self.head = nn.Parameter(torch.randn(3, WIDTH)), nn.Linear(WIDTH, 5)

            def forward(self, facts, edges, nodes):
                return self.head(torch.tanh(edges @ facts @ self.weight)[nodes])

        torch.manual_seed(0)
        return Graph()

    def training_data(self):
        return self.examples

    def collate(self, examples):
        nodes = torch.tensor([each.inputs for each in examples])
        return Batch((self.facts, self.edges, nodes), torch.tensor([each.target for each in examples]))


def test_a_graph_that_all_examples_share_stays_whole(autograd_vectors):
    assert_exact(Nodes(), autograd_vectors)


class TimeFirst(Texts):
    """Words as (positions, batch)."""

    def inputs(self, words):
        return words.T.contiguous()


class Backwards(Reader):
    """A model of (positions, batch, width), with a parameter that no layer owns."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(WIDTH))

    def forward(self, words):
        hidden = self.mix(torch.tanh(self.words(words)) * self.scale)
        return self.head(torch.tanh(hidden).mean(0))


def test_examples_in_the_second_dimension_are_measured_by_the_rules(autograd_vectors):
    assert_exact(TimeFirst(Backwards), autograd_vectors)


class Packed(Texts):
    """The words of all texts in one row, and where each begins."""

    def collate(self, examples):
        begins = torch.tensor([0, *(len(each.inputs) for each in examples[:-1])]).cumsum(0)
        words = torch.cat([each.inputs for each in examples])
        return Batch((words, begins), torch.tensor([each.target for each in examples]))


@pytest.mark.parametrize("sparse", [False, True])
def test_examples_that_lie_one_after_the_other_are_collated_each_by_itself(sparse, autograd_vectors):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(WORDS, WIDTH, mode="mean", sparse=sparse), nn.Linear(WIDTH, 5)

        def forward(self, words, begins):
            return self.head(torch.tanh(self.bag(words, begins)))

    assert_exact(Packed(Bag, ragged=True), autograd_vectors)


class Looked(Reader):
    """Positions looked up once: as (positions,)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(LENGTH, WIDTH)

    def places(self, words, *shared):  # noqa: ARG002 (the interface)
        return self.table(torch.arange(words.shape[1]))


class LookedAsRow(Looked):
    def places(self, words, *shared):  # noqa: ARG002 (the interface)
        return self.table(torch.arange(words.shape[1])[None])


class LookedAndTurned(Looked):
    def places(self, words, *shared):  # noqa: ARG002 (the interface)
        return torch.einsum("tw->wt", self.table(torch.arange(words.shape[1]))).T


class Sliced(Looked):
    def places(self, words, *shared):  # noqa: ARG002 (the interface)
        return self.table.weight[: words.shape[1]]


class Identity(Looked):
    """The weight of a layer read by feeding it the identity, beside its ordinary call."""

    def __init__(self):
        super().__init__()
        self.low = nn.Linear(WIDTH, WIDTH, bias=False)

    def mixed(self, hidden):
        return self.mix(self.low(hidden)) / self.low(torch.eye(WIDTH)).T.norm()


class Elsewhere(Looked):
    """A layer whose weight is multiplied once more."""

    def mixed(self, hidden):
        return torch.tanh(self.mix(hidden)) @ self.mix.weight


class Flattened(Looked):
    """Layers over all positions of all examples in one long row."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def mixed(self, hidden):
        return self.mix(self.norm(hidden.reshape(-1, WIDTH))).reshape(hidden.shape)


class Windowed(Looked):
    """Layers over windows of two positions."""

    def mixed(self, hidden):
        return self.mix(hidden.reshape(-1, 2, WIDTH)).reshape(hidden.shape)


class Mixed(Looked):
    """Experts, each of which sees the words that are sent to it."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def mixed(self, hidden):
        rows = self.mix(hidden).reshape(-1, WIDTH)
        sent = (rows[:, 0] > 0).long()
        found = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            if (sent == number).any():
                found[sent == number] = expert(rows[sent == number])
        return found.reshape(hidden.shape)


class Split(Mixed):
    """Experts that get parts of the words in sorted order, cut where numbers say that were read from tensors."""

    def mixed(self, hidden):
        rows = self.mix(hidden).reshape(-1, WIDTH)
        sent = (rows[:, 0] > 0).long()
        order = sent.argsort(stable=True)
        parts = rows[order].split(torch.stack([(sent == number).sum() for number in range(2)]).tolist())
        found = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return found[order.argsort()].reshape(hidden.shape)


class Recurrent(Looked):
    def __init__(self):
        super().__init__()
        self.recur = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def mixed(self, hidden):
        return self.mix(self.recur(hidden)[0])


class Sparse(Looked):
    """Embeddings whose gradients torch writes down as sparse tensors."""

    def __init__(self):
        super().__init__()
        self.words, self.table = (nn.Embedding(rows, WIDTH, sparse=True) for rows in (WORDS, LENGTH))


@pytest.mark.parametrize(
    ("build", "slow"),
    [
        (Looked, ()),
        (LookedAsRow, ()),
        (LookedAndTurned, ("table",)),
        (Sliced, ("table",)),
        (Identity, ("low",)),
        (Elsewhere, ("mix",)),
        (Flattened, ()),
        (Mixed, ("experts.0", "experts.1")),
        (Split, ("experts.0", "experts.1")),
        (Recurrent, ()),
        (Sparse, ()),
    ],
)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_that_do_not_see_rows_of_examples_are_measured_all_the_same(build, slow, ragged, autograd_vectors):
    few = (FeatureSettings(group_dimension=9),)
    assert_exact(Texts(build, ragged), autograd_vectors, slow, settings=few)


class OwnNorm(nn.Module):
    """A root mean square norm as models of Hugging Face write them, each for itself."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(width) + 0.5), 1e-6

    def forward(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)


class ShiftedNorm(OwnNorm):
    def forward(self, hidden):
        return super().forward(hidden) * (1 + self.weight) / self.weight


class CentredNorm(OwnNorm):
    """It looks like one, and is another."""

    def forward(self, hidden):
        return super().forward(hidden - hidden.mean(-1, keepdim=True))


class SquaredNorm(OwnNorm):
    def forward(self, hidden):
        return super().forward(hidden) * self.weight


class ByHeadNorm(nn.Module):
    """Over the halves of each word, as norms of queries and keys are."""

    def __init__(self):
        super().__init__()
        self.inner = OwnNorm(WIDTH // 2)

    def forward(self, hidden):
        return self.inner(hidden.unflatten(-1, (2, -1)).transpose(1, 2)).transpose(1, 2).flatten(-2)


@pytest.mark.parametrize(
    ("norm", "by_rule"),
    [(OwnNorm, True), (ShiftedNorm, True), (ByHeadNorm, True), (CentredNorm, False), (SquaredNorm, False)],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_norms_of_ones_own_are_measured_on_the_way_where_a_gradient_shows_what_they_are(
    norm, by_rule, ragged, autograd_vectors
):
    class Normed(Looked):
        def __init__(self):
            super().__init__()
            self.norm = norm()

        def mixed(self, hidden):
            return self.mix(self.norm(hidden))

    adapter = Texts(Normed, ragged)
    assert_exact(adapter, autograd_vectors)
    model = adapter.build_model()
    plan = plan_features(model)
    (place,) = (place for place, group in enumerate(plan.groups) if not group.modules)
    assert plan.groups[place].name == plan.groups[place].parameters[0]  # as in indexes from before
    instrument = track_model(adapter, model, plan)
    with hooked_forward(instrument, adapter.examples):
        assert (place in instrument.routes.by_autograd) is not by_rule


def test_a_llama_is_measured_without_a_pass_of_its_own_for_its_norms(autograd_vectors):
    from transformers import LlamaConfig, LlamaForCausalLM

    class Llama(CausalLMAdapter):
        def build_model(self):
            torch.manual_seed(0)
            sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
            return LlamaForCausalLM(LlamaConfig(vocab_size=23, num_key_value_heads=1, **sizes)).eval()

        def training_data(self):
            generator = torch.Generator().manual_seed(0)
            lengths = (7, 3, 5, 7, 2, 6)
            words = [torch.randint(0, 23, (length,), generator=generator) for length in lengths]
            return [Example(f"text-{row}", each, None) for row, each in enumerate(words)]

    adapter = Llama()
    model, examples = adapter.build_model(), adapter.training_data()
    plan = plan_features(model, FeatureSettings(group_dimension=10**6))
    instrument = track_model(adapter, model, plan)
    with hooked_forward(instrument, examples) as record:
        assert instrument.routes.fallback is None
        found = record.vectors(adapter.losses(record.outputs, record.batch))
    expected = autograd_vectors(adapter, model, examples, plan)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_layers_over_windows_are_measured_by_the_rules(autograd_vectors):
    assert_exact(Texts(Windowed), autograd_vectors)


def test_sampled_curvatures_follow_the_same_routes(autograd_vectors):
    adapter = Texts(Sliced)
    model = adapter.build_model()
    plan = plan_features(model, FeatureSettings(group_dimension=10**6))

    class Drawn(Texts):
        def losses(self, outputs, batch):
            return functional.cross_entropy(outputs, batch.targets, reduction="none")

        def sample_targets(self, outputs, batch, generator):  # noqa: ARG002 (the interface)
            return Batch(batch.inputs, torch.zeros(len(outputs), dtype=torch.int64))

    drawn = Drawn(Sliced)
    for example in drawn.examples:
        object.__setattr__(example, "target", 0)
    expected = autograd_vectors(drawn, model, drawn.examples, plan)
    pieces = model_vectors(drawn, model, drawn.examples, plan, kind="fisher", batch_size=LENGTH).pieces
    with pytest.warns(AttributionWarning, match="table: measured by autograd"):
        found = torch.cat([vectors for _, vectors in pieces])
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_sparse_inputs_are_measured(autograd_vectors):
    class Counts(ClassificationAdapter):
        def build_model(self):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5))

        def training_data(self):
            given = torch.randn(13, 8, generator=torch.Generator().manual_seed(0)).relu()
            return [Example(f"row-{row}", given[row].to_sparse(), row % 5) for row in range(13)]

    assert_exact(Counts(), autograd_vectors)


def test_the_layout_of_a_batch_is_read_from_what_grows_with_the_examples():
    assert BatchLayout.of(SharingTexts(Bare, torch.arange), Texts(Bare).examples[0]).dimensions == (0, None, 0)
    assert BatchLayout.of(TimeFirst(Backwards), Texts(Bare).examples[0]).dimensions == (1, 0)
    assert BatchLayout.of(Packed(Bare), Texts(Bare).examples[0]) is None
