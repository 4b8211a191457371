"""A proof holds with the report alone, and any byte of it that is changed is named."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtrail.errors import NotFoundError, VerificationError
from gradtrail.lineage.chain.integrity import merkle_root
from gradtrail.lineage.chain.proof_check import ROW_NODE, check_proof, climb, report_evidence
from gradtrail.lineage.chain.proofs import _levels, _siblings, audit_evidence, audit_root, inclusion_proof
from gradtrail.lineage.ledger.writing import Ledger


@pytest.fixture(scope="module")
def proof(recorded_story: Path) -> dict[str, Any]:
    ledger = Ledger(recorded_story / "ledger.duckdb", recorded_story / "snapshot.duckdb")
    with ledger.read() as connection:
        return json.loads(json.dumps(inclusion_proof(connection, "inbox:0")))


@pytest.fixture
def evidence(proof: dict[str, Any]) -> dict[str, str]:
    return {name: proof[name] for name in ("audit_id", "audit_root", "event_hash")}


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*path, key))
    else:
        yield path, value


def _with(proof: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(proof)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def _changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 1e-9
    return value[:-1] + ("0" if value[-1:] != "0" else "1")


def test_a_proof_holds_for_all_rows_of_the_output(proof, evidence) -> None:
    proven = check_proof(proof, evidence)
    assert len(proven.rows) == 7
    assert proven.output_id == "inbox:0"
    assert (proven.audit_root, proven.event_hash) == (evidence["audit_root"], evidence["event_hash"])


def test_any_changed_value_anywhere_in_a_proof_fails(proof, evidence) -> None:
    unmarked = []
    for path, value in _leaves(proof):
        try:
            check_proof(_with(proof, path, _changed(value)), evidence)
        except VerificationError:
            continue
        unmarked.append(path)
    assert unmarked == []


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("rows", 1, "columns", 5, 2), r"row 0 of attribution \(example train-00\): its columns, its salt"),
        (("rows", 2, "salt"), r"row 1 of attribution \(example train-01\): its columns, its salt"),
        (("rows", 1, "siblings", 0), r"row 0 of attribution .*: its siblings"),
        (("rows", 1, "place"), r"row 1 of attribution .*: its siblings, its place"),
        (("tables", "attribution", "siblings", 0), r"table attribution: its root, count or siblings"),
        (("tables", "attribution", "root"), r"row 0 of attribution .*the root of attribution"),
        (("audit_root",), r"table audit_output: .* root of the audit"),
        (("event", "payload"), r"event 9: its fields do not hash"),
        (("event_hash",), r"event 9: its fields do not hash"),
        (("output_id",), r"row 0 of audit_output: it is about another audit or output"),
    ],
)
def test_the_error_names_what_was_changed(path, named, proof, evidence) -> None:
    inner: Any = proof
    for key in path:
        inner = inner[key]
    with pytest.raises(VerificationError, match=named):
        check_proof(_with(proof, path, _changed(inner)), evidence)


@pytest.mark.parametrize("name", ["audit_id", "audit_root", "event_hash"])
def test_a_proof_of_another_audit_or_report_is_refused(name, proof, evidence) -> None:
    with pytest.raises(VerificationError, match=f"{name}: is .* in the proof and 00 in the report"):
        check_proof(proof, {**evidence, name: "00"})


@pytest.mark.parametrize(
    "broken", [{}, [], {"schema": "gradtrail.proof/2"}, {"schema": "gradtrail.proof/1", "rows": 1}]
)
def test_what_is_no_proof_is_refused_calmly(broken, evidence) -> None:
    with pytest.raises(VerificationError, match=r"is not of the form gradtrail\.proof/1"):
        check_proof(broken, evidence)


def test_upper_case_digits_and_dropped_rows_are_not_accepted_as_the_same(proof, evidence) -> None:
    salt = proof["rows"][0]["salt"]
    with pytest.raises(VerificationError, match="lower-case"):
        check_proof(_with(proof, ("rows", 0, "salt"), salt.upper() if salt != salt.upper() else "ZZ"), evidence)
    with pytest.raises(VerificationError, match="holds no row"):
        check_proof({**proof, "rows": []}, evidence)


@given(count=st.integers(1, 70))
def test_every_leaf_of_every_small_tree_climbs_to_the_root_of_rfc_6962(count: int) -> None:
    digests = [bytes([number]) * 32 for number in range(count)]
    import hashlib

    leaves = [hashlib.sha256(b"\x00" + digest).digest() for digest in digests]
    levels = _levels(leaves, ROW_NODE)
    root = levels[-1][0]
    assert root.hex() == merkle_root(digests)
    for place in range(count):
        siblings = _siblings(levels, place)
        assert climb(leaves[place], place, count, siblings, ROW_NODE) == root
        assert climb(leaves[place], place, count, [*siblings, root], ROW_NODE) != root
        if siblings:
            assert climb(leaves[place], place, count, siblings[:-1], ROW_NODE) != root


def test_the_root_of_an_audit_depends_on_every_table(story_ledger: Ledger, story) -> None:
    with story_ledger.read() as connection:
        evidence = audit_evidence(connection, story.audit.audit_id)
        row = connection.execute("SELECT payload FROM event WHERE sequence = ?", [evidence.event_sequence]).fetchall()
    payload = json.loads(row[0][0])
    assert audit_root(json.dumps(payload)) == evidence.audit_root
    for name in payload["rows"]:
        other = copy.deepcopy(payload)
        other["rows"][name]["count"] += 1
        assert audit_root(json.dumps(other)) != evidence.audit_root


def test_an_output_without_an_audit_has_no_proof(story_ledger: Ledger) -> None:
    with story_ledger.read() as connection, pytest.raises(NotFoundError, match="inbox:4 is in no audit"):
        inclusion_proof(connection, "inbox:4")


def test_no_proof_is_made_of_rows_that_were_tampered_with(story_ledger: Ledger, tamper) -> None:
    tamper(story_ledger, "UPDATE attribution SET score = 9.5 WHERE output_id = 'inbox:0' AND rank = 1 AND score > 0")
    with (
        story_ledger.read() as connection,
        pytest.raises(VerificationError, match=r"attribution .*train-00.* is not as"),
    ):
        inclusion_proof(connection, "inbox:0")
    tamper(story_ledger, "DELETE FROM attribution WHERE output_id = 'inbox:0' AND score = 9.5")
    with story_ledger.read() as connection, pytest.raises(VerificationError, match=r"attribution .*train-00.* is gone"):
        inclusion_proof(connection, "inbox:0")


def test_a_report_that_prints_no_root_or_two_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    cells = "".join(f'<td data-evidence="{name}">00</td>' for name in ("audit_id", "audit_root", "event_hash"))
    page.write_text(cells)
    assert report_evidence(page) == {"audit_id": "00", "audit_root": "00", "event_hash": "00"}
    for text in ("<p>nothing</p>", cells + '<td data-evidence="audit_root">11</td>', "{}"):
        page.write_text(text)
        with pytest.raises(VerificationError, match="exactly once"):
            report_evidence(page)
    with pytest.raises(NotFoundError):
        report_evidence(tmp_path / "absent.html")


def test_the_check_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('duckdb', 'pyarrow', 'rfc8785', 'numpy', 'torch', 'pandas'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import gradtrail.lineage.chain.proof_check\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
