from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from markupsafe import Markup

from gradtrail.reports import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (-12.34, "−12.3"),
        (1437.2, "1,437"),
        (4.5e-6, "4.50×10⁻⁶"),
        (2.5e12, "2.50×10¹²"),
        (float("inf"), "∞"),
        (float("nan"), "not a number"),
    ],
)
def test_a_number_has_three_significant_digits(value: float, text: str) -> None:
    assert formats.number(value) == text


def test_a_score_always_carries_its_sign() -> None:
    assert [formats.score(value) for value in (0.5, -0.5, 0.0)] == ["+0.500", "−0.500", "0"]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.41322, "41.3%"), (0.0052, "0.52%"), (0.00001, "<0.01%")],
)
def test_a_share_is_read_as_a_percentage(share: float, text: str) -> None:
    assert formats.percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.41, "3.4×"), (0.998, "1.0×"), (0.7, "0.70×"), (0.0002, "<0.01×"), (0.0, "0.00×"), (1234.0, "1,234×")],
)
def test_a_ratio_is_read_as_times(value: float, text: str) -> None:
    assert formats.ratio(value) == text


def test_a_time_is_shown_in_utc_wherever_it_was_measured() -> None:
    here = datetime(2026, 11, 22, 1, 8, tzinfo=timezone(timedelta(hours=2)))
    assert formats.moment(here) == formats.moment(here.astimezone(UTC)) == "21 November 2026, 23:08 UTC"


def test_plural_agrees_with_the_count() -> None:
    assert [formats.plural(count, "output") for count in (1, 2, 1437)] == ["1 output", "2 outputs", "1,437 outputs"]


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        " javascript:alert(1)",
        "data:text/html,x",
        "//a.example",
        "https://",
        "http://[",
        "",
        None,
    ],
)
def test_only_web_addresses_become_links(address: str | None) -> None:
    assert formats.web_address(address) is None
    assert formats.web_address("https://mlflow.example/#/runs/1") == "https://mlflow.example/#/runs/1"


def test_control_characters_are_shown_as_replacement_characters() -> None:
    assert formats.printable("a\x00b\x1bc\nd") == "a�b�c\nd"
    assert formats.printable(Markup("<b>")) == "<b>"
    assert formats.printable(3) == 3
