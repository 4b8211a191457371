"""An index stored under a learned weighting: another id, floored vectors, the same scores."""

import numpy as np
import pytest

from gradtrail.attribution.methods.registry import settled
from gradtrail.attribution.methods.spec import MethodSpec
from gradtrail.attribution.scoring.passes import score_pass
from gradtrail.errors import NotFoundError, UsageError
from gradtrail.flows.index import index
from gradtrail.nouns import Index, Weighting
from gradtrail.tasks.audit.preparing import prepare_audit
from gradtrail.tasks.audit.self_influences import write_self_influence
from gradtrail.tasks.calibrate.candidate_methods import query_features
from gradtrail.tasks.calibrate.plans import CalibrateOptions
from gradtrail.tasks.core.models import pinned_model
from gradtrail.tasks.index.opened import method_indexes, open_index
from gradtrail.tasks.index.options import IndexOptions

MODEL = "tiny@champion"
STORED = Weighting("by hand", {"0": 0.0, "2": 1.0})
OTHER = Weighting("by hand", {"0": 3.0, "2": 1.0})


@pytest.fixture
def ingested(ingested):
    for weighting in (STORED, OTHER):
        ingested.workspace.ledger().record_weighting(weighting)
    return ingested


def _scores(tiny, index_id, method, weighting):
    pinned = pinned_model(tiny.workspace, "tiny/1")
    opened = open_index(tiny.workspace, pinned, index_id)
    spec = settled(MethodSpec(method), pinned.adapter)
    examples = [opened.examples(pinned)[place] for place in range(3)]
    rows = query_features(pinned, opened, examples, CalibrateOptions())
    prepared = prepare_audit(
        tiny.workspace, pinned, [opened], [rows], spec, weighting, lambda _: examples, target="emitted"
    )
    assert score_pass(prepared.scoring, top_k=3).example_count == 40
    return np.concatenate([scores for _, scores in prepared.scoring.batches()], axis=1)


@pytest.mark.slow  # every method under every weighting, twice
def test_every_method_and_weighting_scores_alike_on_both_indexes(ingested):
    for projection, methods in (
        ("random", ("grad_dot", "grad_cos", "influence", "influence_global", "horizon", "datainf", "trak")),
        ("eigen", ("ekfac",)),
    ):
        [uniform] = index(ingested.workspace, MODEL, IndexOptions(projection=projection))
        asked = IndexOptions(projection=projection, weighting=STORED.weighting_id[:12])
        [stored] = index(ingested.workspace, MODEL, asked)
        assert stored.index_id != uniform.index_id
        [again] = index(ingested.workspace, MODEL, asked)
        assert (again.index_id, again.new) == (stored.index_id, False)
        for method in methods:
            for weighting in (Weighting(), STORED, OTHER):
                expected = _scores(ingested, uniform.index_id, method, weighting)
                found = _scores(ingested, stored.index_id, method, weighting)
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_self_influence_does_not_depend_on_how_rows_are_stored(ingested):
    index(ingested.workspace, MODEL)
    spec = MethodSpec("influence", curvature="empirical")
    expected = write_self_influence(ingested.workspace, MODEL, spec, 5)
    index(ingested.workspace, MODEL, IndexOptions(weighting=OTHER.weighting_id))
    found = write_self_influence(ingested.workspace, MODEL, spec, 5)
    assert found.index_ids != expected.index_ids
    assert [name for name, _ in found.top] == [name for name, _ in expected.top]
    assert [value for _, value in found.top] == pytest.approx([value for _, value in expected.top], rel=1e-5)


def test_names_that_fit_nothing_or_too_much_are_refused(ingested):
    workspace, ledger = ingested.workspace, ingested.workspace.ledger()
    with pytest.raises(NotFoundError, match="no weighting whose id begins with zz"):
        index(workspace, MODEL, IndexOptions(weighting="zz"))
    weightings = [Weighting("by hand", {"nowhere": float(number)}) for number in range(1, 18)]
    for weighting in weightings:
        ledger.record_weighting(weighting)
    with pytest.raises(UsageError, match=r"The id of \d+ weightings begins with"):
        index(workspace, MODEL, IndexOptions(weighting=_shared([each.weighting_id for each in weightings])))
    with pytest.raises(UsageError, match="The weighting does not fit the index: unknown groups"):
        index(workspace, MODEL, IndexOptions(weighting=weightings[0].weighting_id))
    [built] = index(workspace, MODEL)
    pinned = pinned_model(workspace, "tiny/1")
    real = open_index(workspace, pinned, built.index_id).index
    others = [
        Index(real.checkpoint_id, real.dataset_version_id, {"number": number}, real.coverage, "", 1, "")
        for number in range(17)
    ]
    for other in others:
        ledger.record_index(other)
    with pytest.raises(UsageError, match=r"The id of \d+ indexes begins with"):
        method_indexes(workspace, "tiny/1", "grad_dot", only=_shared([each.index_id for each in others]))


def _shared(ids):
    """The first character that two of seventeen hexadecimal ids must share."""
    first = [each[0] for each in ids]
    return max(first, key=first.count)
