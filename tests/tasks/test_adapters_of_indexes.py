"""The same weights under several adapters: each has indexes, curvature, calibrations and weightings of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from gradtrail.attribution.adapters.loading import load_adapter
from gradtrail.errors import ModelError, NotFoundError, NotReadyError, UntrustedCodeError
from gradtrail.lineage.read import queries
from gradtrail.nouns import Example, Fidelity, Weighting
from gradtrail.storage.models.registry import RegisteredVersion
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.audit.resolving import resolve_audit
from gradtrail.tasks.calibrate.calibrations import plan_calibration
from gradtrail.tasks.calibrate.plans import CalibrateOptions
from gradtrail.tasks.core.models import pinned_model
from gradtrail.tasks.core.watched import WatchedModel
from gradtrail.tasks.core.weightings import found_weighting
from gradtrail.tasks.govern.verifying import verify_workspace
from gradtrail.tasks.index.building import IndexOutcome, build_index, list_checkpoints
from gradtrail.tasks.index.eigenbases import kept_eigen_plan
from gradtrail.tasks.index.opened import method_indexes, open_index
from gradtrail.tasks.index.options import IndexOptions
from gradtrail.tasks.index.passes import IndexPass, plan_index
from gradtrail.tasks.ingest import taking_in
from gradtrail.tasks.ingest.preparations import unprepared

VARIANTS = """

import os


class Corrected(Adapter):
    def losses(self, outputs, batch):
        return super().losses(outputs, batch) * torch.tensor([1.0, 100.0, 1.0])[batch.targets]


class Collating(Adapter):
    def collate(self, examples):
        batch = super().collate(examples)
        return type(batch)(2 * batch.inputs, batch.targets)


class Sampling(Adapter):
    def sample_targets(self, outputs, batch, generator):
        return batch


class Optional(Adapter):
    def __init__(self):
        self.scale = float(os.environ.get("GRADTRAIL_TEST_SCALE", "1"))

    def losses(self, outputs, batch):
        return self.scale * super().losses(outputs, batch)
"""


class Variants:
    """A project whose adapter module has several adapters of one model; each becomes a model of the same weights."""

    def __init__(self, project: Any) -> None:
        self.project = project
        module = project.folder / f"{project.module}.py"
        module.write_text(module.read_text() + VARIANTS)
        allowed = project.settings.model_copy(update={"allowed_adapters": (f"{project.module}:*",)})
        self.workspace = project.workspace = allowed.workspace()

    def adapter(self, kind: str) -> Any:
        return load_adapter(f"{self.project.module}:{kind}", allowed=["*"], search_path=self.project.folder).adapter

    def ingest(self, kind: str, *, old: bool = False, **options: Any) -> str:
        """Register and take in the same weights again; `old` as an older gradtrail recorded them."""
        version = self.project.register(adapter=self.adapter(kind), name=kind.lower(), **options)
        return self.take_in(version, old=old)

    def take_in(self, version: RegisteredVersion, *, old: bool = False) -> str:
        chosen = taking_in.choose_adapter(self.workspace, version, "")
        if old:
            chosen = replace(chosen, decided_by=None)  # type: ignore[arg-type]
        files = taking_in.fetch_files(self.workspace, version)
        checkpoints = taking_in.store_checkpoints(self.workspace, version, files, chosen, False)
        dataset = taking_in.store_manifest(self.workspace, version, files, chosen)
        return taking_in.record_model_version(self.workspace, version, checkpoints, dataset, chosen)

    def index(self, model_version_id: str, options: IndexOptions | None = None) -> IndexOutcome:
        [checkpoint] = list_checkpoints(self.workspace, model_version_id, every=False)
        return build_index(self.workspace, model_version_id, checkpoint, options or IndexOptions())

    def index_as_before(self, model_version_id: str) -> str:
        """An index as an older gradtrail measured and recorded it: without its adapter."""
        [checkpoint] = list_checkpoints(self.workspace, model_version_id, every=False)
        planned = plan_index(self.workspace, model_version_id, checkpoint, IndexOptions())
        one_pass = IndexPass(replace(planned, measured_by=None))
        self.workspace.ledger().record_index(one_pass.seal(one_pass.measure().quarantined))
        return replace(planned, measured_by=None).index_id

    def audit(self, model_version_id: str, number: int, **options: Any) -> str:
        name = model_version_id.partition("/")[0]
        self.project.drop(
            f"{name}-{number}.jsonl", self.project.record(number, model=name, record_id=f"{name}-{number}")
        )
        return str(self.project.record_audit(model_version_id=model_version_id, **options))

    def recorded(self, index_id: str) -> Any:
        with self.workspace.ledger().read() as connection:
            return queries.index(connection, index_id)


@pytest.fixture
def variants(tiny: Any, prefect_server: None) -> Variants:
    return Variants(tiny)


@pytest.fixture(scope="module")
def indexed_variants(
    prefect_server: None, tiny_project: Any, migrated_mlflow: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Variants]:
    """All but the one with an option, each indexed."""
    made = Variants(tiny_project(tmp_path_factory.mktemp("variants"), migrated_mlflow))
    for kind in ("Adapter", "Corrected", "Collating", "Sampling"):
        made.index(made.ingest(kind))
    yield made
    made.project.forget()


def _gradient(adapter: Any, model: torch.nn.Module, example: Example, weights: torch.Tensor) -> torch.Tensor:
    target = torch.tensor([int(example.target)])
    loss = functional.cross_entropy(model(example.inputs[None]), target, weight=weights, reduction="none").sum()
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(model.parameters()))])


def test_each_adapter_of_the_same_weights_has_an_index_of_its_own(indexed_variants: Variants) -> None:
    names = ("adapter/1", "corrected/1", "collating/1", "sampling/1")
    found = [method_indexes(indexed_variants.workspace, name, "grad_dot") for name in names]
    assert len({index_id for [index_id] in found}) == len(names)
    with indexed_variants.workspace.ledger().read() as connection:
        versions = [queries.model_version(connection, name) for name in names]
    assert len({version.checkpoint_ids for version in versions if version}) == 1


def test_scores_under_a_corrected_loss_are_those_of_autograd(indexed_variants: Variants) -> None:
    audit_id = indexed_variants.audit("corrected/1", 0, method="grad_dot", top_k=5)
    adapter = indexed_variants.adapter("Corrected")
    model = pinned_model(indexed_variants.workspace, "corrected/1")
    network, weights = model.load(model.serving), torch.tensor([1.0, 100.0, 1.0])
    record = indexed_variants.project.record(0)
    query = _gradient(adapter, network, Example("q", torch.tensor(record["inputs"]), record["prediction"]), weights)
    wanted = {
        each.example_id: float(query @ _gradient(adapter, network, each, weights)) for each in adapter.training_data()
    }
    strongest = max(map(abs, wanted.values()))
    attributions = indexed_variants.project.recorded(audit_id).attributions
    assert len(attributions) == 10
    for each in attributions:
        assert each.score == pytest.approx(wanted[each.example_id], abs=1e-3 * strongest)
    assert max(each.score for each in attributions) == pytest.approx(max(wanted.values()), rel=1e-3)


def test_the_same_adapter_registered_again_shares_the_index(indexed_variants: Variants) -> None:
    [index_id] = method_indexes(indexed_variants.workspace, "adapter/1", "grad_dot")
    again = indexed_variants.ingest("Adapter", aliases=[])
    outcome = indexed_variants.index(again)
    assert (outcome.index_id, outcome.new) == (index_id, False)


def test_curvature_and_eigenbasis_are_fitted_for_each_adapter(indexed_variants: Variants) -> None:
    workspace = indexed_variants.workspace
    for name in ("adapter/1", "sampling/1"):
        assert indexed_variants.audit(name, 1, method="influence", curvature="fisher")
        [index_id] = method_indexes(workspace, name, "influence")
        kept = [each.name for each in workspace.curvatures.iterdir()]
        assert f"{index_id}-fisher.safetensors" in kept
    eigen = IndexOptions(projection="eigen", group_dimension=4)
    bases = []
    for name in ("adapter/1", "sampling/1"):
        pinned = pinned_model(workspace, name)
        assert kept_eigen_plan(workspace, pinned, pinned.serving, eigen.plan(pinned), "", pinned.decided_by) is None
        [checkpoint] = list_checkpoints(workspace, name, every=False)
        bases.append(plan_index(workspace, name, checkpoint, eigen).plan.basis)
    # One draws from the softmax, the other takes the labels.
    assert bases[0].digest != bases[1].digest


def test_a_calibration_plans_runs_of_its_own_for_each_index(indexed_variants: Variants) -> None:
    workspace = indexed_variants.workspace
    counted = CalibrateOptions(sets=8, seeds=2, steps=(2, 6), weightings=(), target="label")
    plans = [plan_calibration(workspace, name, counted) for name in ("adapter/1", "corrected/1")]
    narrow = indexed_variants.index("adapter/1", IndexOptions(group_dimension=3)).index_id
    plans += [plan_calibration(workspace, "adapter/1", replace(counted, index=narrow))]
    assert len({plan.calibration_id for plan in plans}) == len(plans)
    assert len({plan.query_ids for plan in plans}) == 1
    assert plans[-1].index_id == narrow
    first = replace(counted, index=plans[0].index_id)
    assert plan_calibration(workspace, "adapter/1", first) == plans[0]


def test_a_method_is_chosen_by_what_was_measured_with_the_own_adapter(indexed_variants: Variants) -> None:
    workspace = indexed_variants.workspace
    [index_id] = method_indexes(workspace, "adapter/1", "grad_cos")
    checkpoint = indexed_variants.recorded(index_id).checkpoint_id
    said = {
        "index_ids": [index_id],
        "target": "emitted",
        "longest": True,
        "chosen": True,
        "best_of": ["all"],
        "calibration_id": "x",
    }
    workspace.ledger().record_weighting(Weighting())
    uniform = Weighting().weighting_id
    measured = Fidelity(checkpoint, "grad_cos", uniform, "fidelity_subset", 0.5, 0.1, 0.9, 8, {}, said)
    learned = Weighting(
        "aspect:source", {"0": 2.0}, {"index_ids": [index_id], "checkpoint_id": checkpoint, "method": "grad_cos"}
    )
    workspace.ledger().record_fidelities([measured])
    workspace.ledger().record_weighting(learned)
    assert resolve_audit(workspace, "adapter/1", AuditOptions()).options.method == "grad_cos"
    assert resolve_audit(workspace, "corrected/1", AuditOptions()).options.method != "grad_cos"
    assert found_weighting(workspace, "adapter/1", "aspect:source") == learned
    with pytest.raises(NotFoundError, match="No weighting for the aspect 'source' was learned on corrected/1"):
        found_weighting(workspace, "corrected/1", "aspect:source")


def test_the_ledger_says_what_measured_an_index_and_with_which_libraries(indexed_variants: Variants) -> None:
    [index_id] = method_indexes(indexed_variants.workspace, "corrected/1", "grad_dot")
    found = indexed_variants.recorded(index_id)
    module = indexed_variants.project.module
    assert found.index_id == index_id
    assert found.adapter == f"{module}:Corrected"
    assert set(found.measured_by) == {"class", f"{module}.py"}
    assert found.measured_with["torch"] == torch.__version__
    assert 0 <= found.checks["losses"] < 1e-5
    assert 0 <= found.checks["gradients"] < 1e-4


def test_an_index_named_of_another_adapter_is_refused(indexed_variants: Variants) -> None:
    [foreign] = method_indexes(indexed_variants.workspace, "adapter/1", "grad_dot")
    with pytest.raises(NotReadyError, match=r"was measured by another adapter than its own\. .*gradtrail index corr"):
        method_indexes(indexed_variants.workspace, "corrected/1", "grad_dot", only=foreign[:12])
    pinned = pinned_model(indexed_variants.workspace, "corrected/1")
    with pytest.raises(ModelError, match=r"Corrected measures by changed since .*: class\."):
        open_index(indexed_variants.workspace, pinned, foreign)


def test_a_version_with_a_corrected_adapter_waits_to_be_indexed(variants: Variants) -> None:
    variants.index(variants.ingest("Adapter"))
    assert not unprepared(variants.workspace, WatchedModel("adapter", calibrate=False))
    variants.ingest("Corrected")
    [left] = unprepared(variants.workspace, WatchedModel("corrected", calibrate=False))
    assert (left.ingest, left.index) == (False, True)
    with pytest.raises(NotReadyError, match=r"another adapter .*gradtrail index corrected/1"):
        resolve_audit(variants.workspace, "corrected/1", AuditOptions())


def test_an_option_that_changed_since_a_version_was_taken_in_is_named(
    variants: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = variants.ingest("Optional")
    built = variants.index(name)
    monkeypatch.setenv("GRADTRAIL_TEST_SCALE", "3")
    for measure in (lambda: variants.index(name), lambda: variants.audit(name, 0)):
        with pytest.raises(ModelError, match=r"changed since optional/1 was taken in: self\.scale\. Bring that back"):
            measure()
    again = variants.index(variants.ingest("Optional", aliases=[]))
    assert again.new
    assert again.index_id != built.index_id


def test_a_module_beside_the_adapter_is_pinned_with_it(variants: Variants) -> None:
    beside, module = variants.project.folder / f"{variants.project.module}_beside.py", variants.project.module
    beside.write_text("SCALE = 1\n")
    path = variants.project.folder / f"{module}.py"
    path.write_text(f"from {beside.stem} import SCALE\n" + path.read_text())
    sys.modules.pop(module, None)
    name = variants.ingest("Corrected")
    beside.write_text("SCALE = 2\n")
    with pytest.raises(UntrustedCodeError, match=r"changed \(or one of the 2 files of code that it is made of\)"):
        variants.index(name)
    beside.write_text("SCALE = 1\n")
    assert variants.index(name).new


def test_an_index_of_an_older_gradtrail_is_continued_where_one_adapter_was_registered(variants: Variants) -> None:
    name = variants.ingest("Adapter", old=True)
    before = variants.index_as_before(name)
    assert variants.recorded(before).measured_by is None
    assert variants.index(name).index_id == before
    again, corrected = variants.ingest("Adapter", aliases=[]), variants.ingest("Corrected")
    outcome = variants.index(again)
    assert (outcome.index_id, outcome.new) == (before, False)
    assert method_indexes(variants.workspace, again, "grad_dot") == [before]
    assert variants.index(corrected).index_id != before
    [note] = [note for note in verify_workspace(variants.workspace).notes if "which adapter" in note]
    assert note == (
        f"Index {before[:12]} does not say which adapter measured it: only one was registered with its weights then, "
        "and is taken for it."
    )


def test_an_index_of_an_older_gradtrail_is_left_where_several_adapters_were_registered(variants: Variants) -> None:
    names = [variants.ingest(kind, old=True) for kind in ("Adapter", "Corrected")]
    before = variants.index_as_before(names[0])
    for name in names:
        with pytest.raises(
            NotReadyError,
            match=rf"{before[:12]} .* does not say which adapter measured it, and 2 had been .*gradtrail index {name}",
        ):
            method_indexes(variants.workspace, name, "grad_dot")
    for name in names:
        assert variants.index(name).index_id != before
        assert method_indexes(variants.workspace, name, "grad_dot") != [before]
    assert any("2 were registered with its weights" in note for note in verify_workspace(variants.workspace).notes)


def test_verify_names_an_index_that_an_audit_scored_for_another_adapter(variants: Variants) -> None:
    before = variants.index_as_before(variants.ingest("Adapter", old=True))
    own = variants.audit("adapter/1", 0)
    corrected = variants.ingest("Corrected", old=True)
    assert verify_workspace(variants.workspace).problems == ()
    details = variants.project.recorded(own)
    # As an older gradtrail audited the corrected version.
    variants.project.drop("old.jsonl", variants.project.record(3, model="corrected", record_id="corrected-3"))
    variants.index(corrected)
    other = variants.project.recorded(variants.project.record_audit(model_version_id=corrected))
    foreign = replace(other.audit, index_ids=(before,))
    variants.workspace.ledger().record_audit(
        foreign,
        method_notes=details.method_notes,
        results=other.results,
        attributions=other.attributions,
        shares=other.shares,
        influences=other.influences,
        findings=other.findings,
        group_contributions=other.group_contributions,
    )
    [problem] = verify_workspace(variants.workspace).problems
    assert (problem.kind, problem.subject) == ("index", before)
    assert problem.message == (
        f"another adapter measured its rows than the one of corrected/1, of which audit {foreign.audit_id[:12]} "
        "scored them"
    )
