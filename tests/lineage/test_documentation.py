from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradtrail.lineage.ledger.writing import Ledger
from gradtrail.lineage.schema.tables import TABLES
from gradtrail.lineage.sql.answering import run_sql

PAGE = Path(__file__).parents[2] / "docs" / "ledger.md"
QUESTIONS = re.findall(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def test_there_are_five_questions_and_every_table_is_named() -> None:
    assert len(QUESTIONS) == 5
    assert [name for name in TABLES if f"`{name}`" not in PAGE.read_text("utf-8")] == []


@pytest.mark.parametrize("place", range(5))
def test_each_question_of_the_page_has_an_answer(place: int, story_ledger: Ledger) -> None:
    assert run_sql(story_ledger.paths.snapshot, QUESTIONS[place]).num_rows > 0
