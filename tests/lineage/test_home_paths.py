"""Which locations are recorded relative to the home folder, and where recorded ones are read."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from gradtrail.lineage.schema.home_paths import home_of, to_read, to_record

HOME = Path("/srv/team/.gradtrail")


@pytest.mark.parametrize(
    "location",
    ["s3://bucket/gradients/index_1.lance", "runs:/abc/gradtrail/step-1", "/data/gradients-of-all/index_1.lance"],
)
def test_what_lies_elsewhere_is_recorded_and_read_as_it_is(location: str) -> None:
    assert to_record(location, HOME) == location
    assert to_read(location, HOME) == location


@pytest.mark.parametrize("inside", ["manifests/aa.jsonl", "reports/bb/report.html", "gradients/index_1.lance"])
def test_what_lies_in_the_home_is_recorded_relative_to_it(inside: str) -> None:
    assert to_record(str(HOME / inside), HOME) == inside
    assert to_read(inside, HOME) == str(HOME / inside)
    assert to_read(f"/before/home/{inside}", HOME) == str(HOME / inside)


def test_a_gradient_folder_elsewhere_that_is_there_is_no_part_of_a_moved_home(tmp_path: Path) -> None:
    table = tmp_path / "gradients" / "index_1.lance"
    table.mkdir(parents=True)
    assert to_read(str(table), HOME) == str(table)


def test_the_home_is_the_folder_of_the_open_file(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "ledger.duckdb")) as connection:
        assert home_of(connection) == tmp_path.resolve()
    with duckdb.connect(":memory:") as connection:
        assert home_of(connection) is None
        connection.execute(f"ATTACH '{tmp_path / 'ledger.duckdb'}' AS ledger (READ_ONLY)")
        connection.execute("USE ledger")
        assert home_of(connection) == tmp_path.resolve()
