"""Events as a catalogue reads them: OpenMetadata's own models and the parser of its OpenLineage connector."""

import json
import subprocess
import sys
from contextlib import closing

import pytest
from openlineage.client.serde import Serde

from gradtrail.lineage.exports.openlineage_events import run_events

CONSUMER = ("openmetadata-ingestion==2.0.7.0", "pydantic==2.*", "sqlalchemy==2.*")
READ = """
import json, sys, types
# The package's own __init__ wants every source that OpenMetadata has; its parts are imported without it.
package = types.ModuleType("metadata")
package.__path__ = [f"{sys.prefix}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/metadata"]
sys.modules["metadata"] = package
from metadata.generated.schema.api.lineage.openlineage.openLineageRunEvent import OpenLineageRunEvent
from metadata.ingestion.source.pipeline.openlineage.utils import message_to_open_lineage_event
for line in sys.stdin:
    taken = OpenLineageRunEvent.model_validate(json.loads(line))
    parsed = message_to_open_lineage_event(json.loads(line))
    sides = [[each["name"] for each in side] for side in (parsed.inputs, parsed.outputs)]
    assert sides == [[each.name for each in side or ()] for side in (taken.inputs, taken.outputs)]
    print(json.dumps([parsed.job["name"], parsed.event_type, *sides]))
"""


@pytest.fixture
def consumer(tmp_path):
    """A Python with the catalogue's connector and what its models need, and nothing of gradtrail."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *CONSUMER[1:]], check=True)
    subprocess.run([*install, "--no-deps", CONSUMER[0]], check=True)
    return python


@pytest.mark.slow
def test_a_catalogue_takes_every_event_and_finds_the_same_datasets(story_ledger, consumer):
    with closing(story_ledger.read_snapshot()) as connection:
        events = [json.loads(Serde.to_json(event)) for event in run_events(connection)]
    lines = "\n".join(map(json.dumps, events))
    done = subprocess.run([consumer, "-c", READ], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = [
        [event["job"]["name"], event["eventType"], *([each["name"] for each in event[side]] for side in sides)]
        for event in events
        if (sides := ("inputs", "outputs"))
    ]
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected
    broken = json.dumps({name: value for name, value in events[0].items() if name != "job"})
    refused = subprocess.run([consumer, "-c", READ], input=broken, capture_output=True, text=True, check=False)
    assert "OpenLineageRunEvent" in refused.stderr  # so that the events above could have been refused
