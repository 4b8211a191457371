"""A table on a real Postgres as a source: streamed, bound, in its own types, and away for a moment."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from gradtrail.errors import StoreError, UsageError
from gradtrail.nouns import Watermark
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.sources.intake import Intake
from gradtrail.storage.sources.spool import open_spool
from gradtrail.storage.sources.sql import SqlSource

pytestmark = pytest.mark.slow


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Postgres of its own on a free port; stopped and removed afterwards."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        missing = "Postgres is not installed under /usr/lib/postgresql"
        if os.environ.get("GRADTRAIL_REQUIRE_POSTGRES") == "1":
            pytest.fail(f"{missing}, and GRADTRAIL_REQUIRE_POSTGRES=1 asks for it")
        pytest.skip(f"{missing}; set GRADTRAIL_REQUIRE_POSTGRES=1 to fail here")
    folder = Path(tempfile.gettempdir()) / f"gradtrail-postgres-{os.getpid()}"
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(found[-1] / program), "-D", str(folder), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    run("initdb", "--auth=trust", "--username=reader", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://reader@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)


TABLE = """
CREATE SCHEMA serving;
CREATE TABLE serving.answers (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), made_at timestamptz, plain_at timestamp, answer integer,
    features jsonb, confidence numeric, picture bytea);
INSERT INTO serving.answers (made_at, plain_at, answer, features, confidence, picture)
SELECT moment, moment AT TIME ZONE 'UTC', number % 3, '[0.5, 1]', 0.25, '\\x00ff'
FROM generate_series(1, 1000) AS number, LATERAL (SELECT timestamptz '2026-02-01 00:00+00' + number * interval '1 min')
    AS made (moment);
"""


def test_a_postgres_table_is_read_in_its_own_types_and_only_from_the_watermark_on(postgres, tmp_path):
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(sa.text(TABLE))
    now = datetime(2026, 3, 1, tzinfo=UTC)
    common = {
        "fields": {"prediction": "answer", "inputs": "features"},
        "constants": {"model": "digits", "version": 3},
        "id_column": "id",
        "location": postgres,
        "time_zone": "UTC",
    }
    query = "SELECT * FROM serving.answers WHERE made_at >= :since AND answer < 2"
    with open_spool(tmp_path / "spool.sqlite") as spool:

        def read(config, since=None):
            spool.begin(Watermark(config.name, "sql", None))
            list(Intake(config, SqlSource(config), spool, now, since, None, lambda _: {}).run())
            return spool.watermark(config.name)

        zoned = SourceConfig("zoned", "sql", table="serving.answers", time_column="made_at", **common)
        plain = SourceConfig("plain", "sql", table="serving.answers", time_column="plain_at", **common)
        asked = SourceConfig("asked", "sql", query=query, time_column="made_at", **common)
        last = datetime(2026, 2, 1, 16, 40, tzinfo=UTC)
        for config, count in ((zoned, 1000), (plain, 1000), (asked, 667)):
            assert (read(config).taken, read(config).reached) == (count, last), config.name
        record = spool.ready("zoned", ["digits/3"], 1)[0].payload
        assert b'"picture":{"$base64":"AP8="}' in record
        assert b'"inputs":[0.5,1]' in record
        assert b'"confidence":0.25' in record
        with engine.begin() as connection:
            add = "INSERT INTO serving.answers (made_at, answer, features) VALUES (:moment, 1, '[1]')"
            for hours in (1, 100):
                connection.execute(sa.text(add), {"moment": last - timedelta(hours=hours)})
        assert read(zoned, since=last - timedelta(hours=24)).taken == 1001
        wrong = SourceConfig("wrong", "sql", query="SELECT 1 FROM absent WHERE :since", time_column="made_at", **common)
        with pytest.raises(UsageError, match="cannot be run"):
            read(wrong)
        gone = {**common, "location": postgres.replace("/postgres", "/absent")}
        away = SourceConfig("away", "sql", table="serving.answers", time_column="made_at", **gone)
        with pytest.raises(StoreError, match="cannot be read"):
            read(away)
    engine.dispose()
