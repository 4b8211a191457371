"""Which parameter groups carried the kept attributions of an audit: their rows are read once more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from gradtrail.attribution.features.rows import GradientBatch
from gradtrail.attribution.methods.registry import find_method
from gradtrail.attribution.scoring.joint import Member
from gradtrail.attribution.scoring.kept_contributions import ScoredIndex, group_contributions
from gradtrail.nouns import Attribution, GroupContribution
from gradtrail.tasks.index.opened import OpenIndex


def audited_groups(
    opened: Sequence[OpenIndex], members: Sequence[Member], attributions: Sequence[Attribution], method: str
) -> list[GroupContribution]:
    """The contribution of every group to the attributions that an audit keeps; `opened` and `members` go together.

    Raises:
        StoreError: if rows or queries are no longer those that were scored.
    """
    kept = [ScoredIndex(member.queries, partial(_rows_of, each)) for each, member in zip(opened, members, strict=True)]
    return group_contributions(kept, attributions, opened[-1].plan, find_method(method).combination)


def _rows_of(opened: OpenIndex, example_ids: Sequence[str]) -> Iterator[GradientBatch]:
    for batch in opened.table.rows_of(example_ids, version=opened.index.table_version):
        yield GradientBatch(
            example_ids=batch.example_ids,
            vectors=torch.tensor(batch.vectors),
            losses=torch.tensor(batch.losses),
            squared_norms=torch.tensor(batch.squared_norms),
        )
