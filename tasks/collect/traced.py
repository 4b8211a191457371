"""Outputs that came from traces, and where MLflow shows them."""

from __future__ import annotations

from collections.abc import Iterable

from gradtrail.nouns import Output
from gradtrail.storage.models.registry import Registry
from gradtrail.storage.sources.traces import is_trace_id
from gradtrail.tasks.core.workspace import Workspace


def trace_pages(workspace: Workspace, registry: Registry, outputs: Iterable[Output]) -> dict[str, str]:
    """The address of the trace of each output that was read from one, by output id.

    MLflow's page of a trace belongs to an experiment and shows any trace, so the first experiment of the source will
    do. Outputs of a source that is not in the settings any more, or whose experiment is gone, have none.
    """
    client, links = registry.client, workspace.links()
    experiments = {}
    for source in workspace.output_sources:
        if source.kind == "traces" and (found := client.get_experiment_by_name(source.experiments[0])):
            experiments[source.name] = str(found.experiment_id)
    return {
        output.output_id: links.trace(experiments[output.source], output.record_id)
        for output in outputs
        if output.source in experiments and is_trace_id(output.record_id)
    }
