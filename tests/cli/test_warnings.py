"""What a measurement warns of is one calm line; other warnings keep Python's form."""

import warnings

import pytest

from gradtrail import printing
from gradtrail.errors import AttributionWarning


@pytest.fixture
def shown_plainly(monkeypatch):
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *arguments: shown.append(arguments[:2]))
        printing.calm_warnings()
        yield shown


def test_a_warning_of_a_measurement_is_one_line_that_names_no_file(shown_plainly, capsys):
    said = "A batch of 8 examples did not fit into memory [cpu]; going on with 4."
    warnings.warn(said, AttributionWarning, stacklevel=1)
    assert capsys.readouterr().err == f"Note: {said}\n"
    assert shown_plainly == []


def test_other_warnings_go_where_they_went_before(shown_plainly, capsys):
    warnings.warn("something else", UserWarning, stacklevel=1)
    [(message, category)] = shown_plainly
    assert (str(message), category) == ("something else", UserWarning)
    assert capsys.readouterr().err == ""
