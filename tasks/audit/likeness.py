"""How alike outputs and their proponents are: by the bytes of their inputs, and by the cosine of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.features.weights import unweighted_vectors
from gradtrail.digests import content_sha256
from gradtrail.nouns import Attribution, Example
from gradtrail.reports.policies.facts import Likeness
from gradtrail.tasks.index.opened import OpenIndex

_MOST_NUMBERS = 1 << 24


def measured_likeness(
    opened: OpenIndex,
    queries: GradientBatch,
    attributions: Sequence[Attribution],
    outputs_of: Callable[[Sequence[str]], Sequence[Example]],
    example_of: Callable[[str], Example],
    inputs_of: Callable[[Example], object],
    least_pair: float,
) -> dict[str, Likeness]:
    """The likeness of every output to its proponents; pairs of proponents with a cosine of at least `least_pair`.

    Gradients are compared unweighted, at the serving checkpoint. The rows of some outputs are held at a time, at most
    about 64 MB; of a training example's inputs the digest only.

    Args:
        opened: the index of the serving checkpoint.
        queries: the outputs as measured at it, unweighted.
        attributions: what the audit keeps.
        outputs_of: outputs as examples, by id.
        example_of: a training example, by id.
        inputs_of: the inputs of an example as the model takes them: a record of an output may write them otherwise.
        least_pair: 0 asks for no pairs.

    Raises:
        DataError: the training data is no longer what was recorded.
        StoreError: a row is no longer there.
    """
    proponents: dict[str, list[str]] = {output_id: [] for output_id in queries.example_ids}
    for each in attributions:
        if each.side == "proponent":
            proponents[each.output_id].append(each.example_id)
    most = max((len(kept) for kept in proponents.values()), default=0)
    size = max(1, _MOST_NUMBERS // max(1, most * opened.plan.dimension))
    inputs: dict[str, str] = {}
    found: dict[str, Likeness] = {}
    for start in range(0, len(queries.example_ids), size):
        output_ids = queries.example_ids[start : start + size]
        rows = _unit_rows(opened, sorted({name for output_id in output_ids for name in proponents[output_id]}))
        vectors = _unit(queries.vectors[start : start + size])
        for output, query in zip(outputs_of(output_ids), vectors, strict=True):
            names = proponents[output.example_id]
            for name in names:
                if name not in inputs:
                    inputs[name] = content_sha256(inputs_of(example_of(name)), None)
            own = content_sha256(inputs_of(output), None)
            found[output.example_id] = _likeness(names, {n for n in names if inputs[n] == own}, query, rows, least_pair)
    return found


def _likeness(
    names: Sequence[str], same: set[str], query: Tensor, rows: Mapping[str, Tensor], least_pair: float
) -> Likeness:
    if not names:
        return Likeness()
    units = torch.stack([rows[name] for name in names])
    cosines = dict(zip(names, (units @ query).tolist(), strict=True))
    pairs: tuple[tuple[str, str, float], ...] = ()
    if least_pair:
        between = units @ units.T
        near = torch.nonzero(torch.triu(between >= least_pair, diagonal=1)).tolist()
        pairs = tuple((names[one], names[other], between[one, other].item()) for one, other in near)
    return Likeness(frozenset(same), cosines, pairs)


def _unit_rows(opened: OpenIndex, example_ids: Sequence[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for batch in opened.table.rows_of(example_ids, version=opened.index.table_version):
        vectors = unweighted_vectors(torch.tensor(batch.vectors), opened.plan, opened.plan.stored_weighting)
        found.update(zip(batch.example_ids, _unit(vectors), strict=True))
    return found


def _unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, of shape (rows, D) float64; one of zeros stays so and is like nothing."""
    vectors = vectors.double()
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / lengths.clamp_min(torch.finfo(torch.float64).tiny)
