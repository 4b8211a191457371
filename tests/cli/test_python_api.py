"""The whole job from Python: what the command line does, on one handle, and what it says of mistakes."""

import pytest

import gradtrail
import gradtrail.attribution
from gradtrail.errors import UsageError


def test_a_model_goes_from_registration_to_its_report_on_one_handle(tiny, prefect_server, monkeypatch):
    (tiny.folder / "gradtrail.toml").write_text(
        f'home = "{tiny.home}"\nallowed_adapters = ["{tiny.reference}"]\nadapter_path = "{tiny.folder}"\n'
    )
    monkeypatch.chdir(tiny.folder)
    tiny.register()
    trail = gradtrail.connect()
    assert trail.ingest("tiny@champion").model_version_id == "tiny/1"
    [indexed] = trail.index("tiny@champion", group_dimension=16)
    assert indexed.rows_written == 40
    outputs = tiny.drop("elsewhere.txt", *map(tiny.record, range(2))).rename(tiny.folder / "outputs.jsonl")
    assert trail.add_outputs(outputs).parent == tiny.workspace.inbox
    calibrated = trail.calibrate("tiny@champion", sets=8, seeds=2, steps=(2, 4), weightings=())
    assert calibrated.model_version_id == "tiny/1"
    outcome = trail.audit("tiny@champion", top_k=3)
    assert outcome.output_count == 2
    assert trail.report() == trail.report(outcome.audit_id[:10])
    assert outcome.audit_id[:12] in trail.report().read_text("utf-8")
    assert len(trail.explain("inbox:out-0").proponents) == 3
    assert trail.sql("SELECT count(*) AS n FROM audit").arrow().to_pylist() == [{"n": 1}]


@pytest.mark.parametrize("step", ["index", "calibrate", "audit"])
def test_an_option_that_does_not_exist_is_named_with_those_that_do(tiny, step):
    with pytest.raises(UsageError, match="There is no option 'colour'") as caught:
        getattr(gradtrail.connect(tiny.home), step)("tiny@champion", colour="red")
    assert "device" in caught.value.remedy


def test_attribution_offers_the_way_from_a_model_to_scores_and_no_more():
    names = gradtrail.attribution.__all__
    assert {"FeatureSettings", "plan_features", "compute_features", "prepare_queries", "score", "shares"} <= set(names)
    assert len(names) <= 20
    assert all(getattr(gradtrail.attribution, name).__doc__ for name in names)
