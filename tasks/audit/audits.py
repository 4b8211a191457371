"""Audit: score every training example against measured outputs exactly, apply the policy, record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.methods.registry import find_method, settled
from gradtrail.attribution.scoring.permutation_intervals import INTERVALS_TOGETHER
from gradtrail.digests import sha256_json
from gradtrail.lineage.events import withdrawals
from gradtrail.lineage.events.withdrawals import Withdrawn
from gradtrail.lineage.read import queries
from gradtrail.lineage.read.share_history import earlier_shares
from gradtrail.nouns import Audit, Weighting
from gradtrail.reports.policies.evaluation import evaluate
from gradtrail.reports.policies.facts import EarlierAudit, PolicyFacts
from gradtrail.reports.policies.file import Policy
from gradtrail.tasks.audit.audited_model import AuditedModel
from gradtrail.tasks.audit.beyond_audit import BeyondAudit, asked_by, largest_self_influences, likeness_asked_for
from gradtrail.tasks.audit.facts import policy_facts
from gradtrail.tasks.audit.group_contributions import audited_groups
from gradtrail.tasks.audit.options import AuditOptions
from gradtrail.tasks.audit.preparing import PreparedAudit, method_parameters, prepare_audit
from gradtrail.tasks.audit.scored import OVERALL_TOP, PERMUTATIONS, Scored, score_prepared
from gradtrail.tasks.collect.outputs_as_examples import output_examples
from gradtrail.tasks.core.extensions import method_source
from gradtrail.tasks.core.measured_fidelity import audited_fidelity
from gradtrail.tasks.core.measured_outputs import MeasuredOutputs
from gradtrail.tasks.core.models import PinnedModel
from gradtrail.tasks.core.policies import workspace_policy
from gradtrail.tasks.core.weightings import found_weighting
from gradtrail.tasks.core.workspace import Workspace
from gradtrail.tasks.index.opened import OpenIndex


@dataclass(frozen=True)
class _Known:
    """What the ledger knew before this audit, and its policy may ask about."""

    withdrawn: Withdrawn
    earlier: tuple[EarlierAudit, ...]
    has_weighting: bool


def score_outputs(audited: AuditedModel, measured: MeasuredOutputs) -> str:
    """Score all training examples against the measured outputs, apply the policy, record the audit; returns its id."""
    workspace, options, pinned, opened = audited.workspace, audited.options, audited.pinned, audited.opened
    policy = workspace_policy(workspace)
    options = settled(options, pinned.adapter)
    weighting = found_weighting(workspace, audited.model_version_id, options.weighting)
    output_ids = [each.output_id for each in measured.outputs]
    output_queries = [each.queries(output_ids, options.target) for each in opened]
    examples_of = partial(output_examples, workspace, pinned, options.target)
    known = _known(workspace, pinned, output_ids, options, policy, weighting)
    audit = _audit(workspace, pinned, opened, output_ids, options, weighting, policy, known)
    prepared = prepare_audit(
        workspace,
        pinned,
        opened,
        output_queries,
        options,
        weighting,
        examples_of,
        target=options.target,
        device=options.device,
    )
    scored = score_prepared(prepared, measured.outputs, options.top_k)
    facts = _facts(workspace, pinned, opened[-1], output_queries[-1], audit, policy, scored, known)
    if not known.has_weighting:
        workspace.ledger().record_weighting(weighting)
    workspace.ledger().record_audit(
        audit,
        method_notes={
            "meaning_of_scores": pinned.adapter.meaning_of_scores,
            "curvature_examples": prepared.curvature_examples,
            "warnings": audit_warnings(prepared),
            "intervals": INTERVALS_TOGETHER,
        },
        results=scored.results,
        attributions=scored.attributions,
        shares=scored.shares,
        influences=scored.influences,
        findings=evaluate(policy, facts),
        group_contributions=audited_groups(opened, prepared.members, scored.attributions, audit.method),
    )
    return audit.audit_id


def _known(
    workspace: Workspace,
    pinned: PinnedModel,
    output_ids: Sequence[str],
    options: AuditOptions,
    policy: Policy,
    weighting: Weighting,
) -> _Known:
    most, name = asked_by(policy).earlier_audits, pinned.model_version.name
    with workspace.ledger().read() as connection:
        history = earlier_shares(connection, name, find_method(options.method).name, options.target, output_ids, most)
        withdrawn = withdrawals.withdrawn(connection)
        has_weighting = queries.weighting(connection, weighting.weighting_id) is not None
    earlier = tuple(EarlierAudit(audit_id, shares) for audit_id, shares in history)
    return _Known(withdrawn, earlier, has_weighting)


def _audit(
    workspace: Workspace,
    pinned: PinnedModel,
    opened: Sequence[OpenIndex],
    output_ids: Sequence[str],
    options: AuditOptions,
    weighting: Weighting,
    policy: Policy,
    known: _Known,
) -> Audit:
    """The audit as it is pinned: all that its answer depends on."""
    parameters = {
        "top_k": options.top_k,
        "overall_top": OVERALL_TOP,
        "permutations": PERMUTATIONS,
        **method_parameters(pinned, options, [each.checkpoint for each in opened]),
        **method_source(workspace, options.method),
    }
    if options.question:
        parameters["named_horizon"] = options.question
    if known.withdrawn.values or known.withdrawn.example_ids:
        # What is withdrawn decides what is found: without it, an audit made again after a withdrawal had the old id.
        parameters["withdrawn_sha256"] = known.withdrawn.sha256
    if known.earlier:
        parameters["history_sha256"] = sha256_json([each.audit_id for each in known.earlier])
    return Audit(
        outputs=tuple((output_id, options.target) for output_id in output_ids),
        model_version_id=pinned.model_version.model_version_id,
        index_ids=tuple(each.index.index_id for each in opened),
        method=find_method(options.method).name,
        parameters=parameters,
        weighting_id=weighting.weighting_id,
        policy_sha256=policy.sha256,
    )


def _facts(
    workspace: Workspace,
    pinned: PinnedModel,
    serving: OpenIndex,
    output_rows: GradientBatch,
    audit: Audit,
    policy: Policy,
    scored: Scored,
    known: _Known,
) -> PolicyFacts:
    """What the rules of the policy look at."""
    asked, target = asked_by(policy), audit.outputs[0][1]
    output_ids = [output_id for output_id, _ in audit.outputs]
    self_influences = largest_self_influences(serving) if asked.self_influence else ()
    named = scored.example_ids | {example_id for example_id, _ in self_influences}
    with workspace.ledger().read() as connection:
        sources = {output.output_id: output.source for output in queries.outputs(connection, output_ids)}
        examples = queries.examples(connection, serving.index.dataset_version_id, sorted(named))
        fidelity = audited_fidelity(
            connection,
            serving.index.checkpoint_id,
            audit.method,
            audit.parameters,
            audit.weighting_id,
            audit.index_ids,
            target,
        )
    likeness = likeness_asked_for(
        asked,
        serving,
        output_rows,
        scored.attributions,
        partial(output_examples, workspace, pinned, target),
        pinned,
        examples,
    )
    return policy_facts(
        scored.results,
        scored.attributions,
        scored.shares,
        scored.influences,
        {example_id: dict(found.attributes) for example_id, found in examples.items()},
        serving.index.coverage,
        fidelity,
        known.withdrawn,
        BeyondAudit(likeness, known.earlier, self_influences, sources),
    )


def audit_warnings(prepared: PreparedAudit) -> list[str]:
    """What the report must say about this method on this index, as whole sentences; complete once it has scored."""
    warnings = list(prepared.warnings)
    if prepared.missing:
        warnings.append(
            f"{len(prepared.missing):,} training examples are not in the index of every checkpoint and have no score."
        )
    return warnings
