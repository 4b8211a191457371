"""Files attached to in-memory databases: who shares one, and when it is let go."""

import multiprocessing
import os
import subprocess
import sys

import duckdb
import pytest

from gradtrail.lineage import engines


@pytest.fixture
def database(tmp_path):
    path = (tmp_path / "numbers.duckdb").resolve()
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE number AS SELECT 7 AS n")
    return path


def written_elsewhere(path):
    """Whether another process can open the file for writing."""
    program = f"import duckdb; duckdb.connect({str(path)!r}).close()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_readers_share_a_file_which_stays_locked_until_the_last_has_left(database):
    first, second = (engines.use(database, read_only=True) for _ in range(2))
    assert first.sql("FROM number").fetchall() == second.sql("FROM number").fetchall() == [(7,)]
    engines.release(database, first)
    assert second.sql("FROM number").fetchall() == [(7,)]
    assert not written_elsewhere(database)
    engines.release(database, second)
    assert written_elsewhere(database)


def test_a_file_is_not_written_through_what_readers_have_open(database):
    reader = engines.use(database, read_only=True)
    with pytest.raises(duckdb.ConnectionException, match="different configuration"):
        engines.use(database, read_only=False)
    engines.release(database, reader)


def test_what_was_written_is_in_the_file_when_it_is_let_go(database):
    writer = engines.use(database, read_only=False)
    writer.execute("INSERT INTO number SELECT range FROM range(1000)")
    engines.release(database, writer)
    assert not database.with_name(f"{database.name}.wal").exists()
    with duckdb.connect(str(database), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM number").fetchall() == [(1001,)]


def test_no_table_of_one_file_is_seen_by_the_next(database, tmp_path):
    engines.release(database, engines.use(database, read_only=True))
    other = (tmp_path / "other.duckdb").resolve()
    connection = engines.use(other, read_only=False)
    assert connection.sql("SELECT table_name FROM duckdb_tables()").fetchall() == []
    assert connection.sql("SELECT current_setting('temp_directory')").fetchall() == [(f"{other}.tmp",)]
    engines.release(other, connection)


def test_a_second_connection_streams_beside_the_first(database):
    connection = engines.use(database, read_only=True)
    second = engines.second(connection)
    assert second.sql("FROM number").fetchall() == [(7,)]
    second.close()
    engines.release(database, connection)


def _read_in_child(path, answer):
    connection = engines.use(path, read_only=True)
    answer.send(connection.sql("FROM number").fetchall())
    engines.release(path, connection)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_begins_with_databases_of_its_own(database):
    engines.release(database, engines.use(database, read_only=True))
    mine, its = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(database, its))
    child.start()
    assert mine.poll(30)
    assert mine.recv() == [(7,)]
    child.join(30)
