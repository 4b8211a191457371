import subprocess
import sys
from pathlib import Path

import lancedb
import numpy as np
import pytest

from gradtrail.errors import DataError, StoreError

INDEX_ID = "1f" * 32


@pytest.fixture
def query_rows(gradient_rows):
    def rows(numbers, target="emitted"):
        measured = gradient_rows(numbers)
        return {
            "output_ids": [f"kiosk:o'{number}" for number in numbers],
            "targets": [target] * len(numbers),
            **{name: measured[name] for name in ("vectors", "losses", "squared_norms")},
        }

    return rows


def test_queries_come_back_in_the_order_asked(open_gradients, query_rows):
    table, rows = open_gradients(), query_rows(range(5))
    assert table.put_queries(**rows) == 5
    stored = open_gradients().queries(["kiosk:o'3", "kiosk:o'1", "kiosk:never"])
    assert stored.example_ids == ["kiosk:o'3", "kiosk:o'1"]
    np.testing.assert_array_equal(stored.vectors, rows["vectors"][[3, 1]])
    np.testing.assert_array_equal(stored.losses, rows["losses"][[3, 1]])
    np.testing.assert_array_equal(stored.squared_norms, rows["squared_norms"][[3, 1]])
    assert open_gradients().queries().example_ids == rows["output_ids"]


def test_nothing_asked_or_nothing_stored_is_an_empty_answer_of_the_right_shape(open_gradients, query_rows):
    assert open_gradients().queries().vectors.shape == (0, 8)
    open_gradients().put_queries(**query_rows(range(2)))
    assert open_gradients().put_queries(**query_rows([])) == 0
    assert open_gradients().queries([]).squared_norms.shape == (0, 3)


def test_one_output_has_a_row_per_target(open_gradients, query_rows):
    table = open_gradients()
    table.put_queries(**query_rows([1, 2]))
    assert table.put_queries(**query_rows([2], target="label")) == 1
    assert table.queries().targets == ["emitted", "emitted", "label"]
    assert table.queries(target="label").example_ids == ["kiosk:o'2"]
    assert table.queries(["kiosk:o'1", "kiosk:o'2"], target="emitted").targets == ["emitted", "emitted"]


def test_putting_again_keeps_what_was_first_measured(open_gradients, query_rows):
    first, second = query_rows([1]), query_rows([1, 2])
    second["losses"] = second["losses"] + 1
    assert open_gradients().put_queries(**first) == 1
    assert open_gradients().put_queries(**second) == 1
    np.testing.assert_array_equal(open_gradients().queries(["kiosk:o'1"]).losses, first["losses"])


def test_more_ids_than_one_filter_holds(open_gradients, query_rows):
    table, rows = open_gradients(), query_rows(range(2500))
    table.put_queries(**rows)
    assert table.queries(rows["output_ids"][::-1]).example_ids == rows["output_ids"][::-1]


def test_bad_queries_are_refused(open_gradients, query_rows):
    table, rows = open_gradients(), query_rows([1, 2])
    with pytest.raises(DataError, match="more than once in one batch: kiosk:o'1 emitted"):
        table.put_queries(**query_rows([1, 1]))
    rows["vectors"][1, 0] = np.nan
    with pytest.raises(DataError, match="The gradient of output kiosk:o'2 is not finite"):
        table.put_queries(**rows)
    assert table.queries().example_ids == []


def test_a_changed_query_is_named_by_verify(open_gradients, query_rows, gradient_rows):
    table = open_gradients()
    table.append(**gradient_rows(range(3)))
    table.seal(table.present())
    table.put_queries(**query_rows([1, 2]))
    assert table.verify() == []
    raw = lancedb.connect(str(Path(table.uri).parent)).open_table(f"queries_{INDEX_ID}")
    raw.update(where="loss >= 0 AND output_id LIKE '%2'", values={"loss": 0.5})
    (problem,) = open_gradients().verify()
    assert "Queries changed since they were measured: kiosk:o'2." in problem


def test_what_is_forgotten_of_many_outputs_is_in_no_file(gradient_store, open_gradients, query_rows):
    table, rows = open_gradients(), query_rows(range(300))
    table.put_queries(**rows)
    erased, kept = rows["vectors"][150], rows["vectors"][151]
    assert (len(files_with(gradient_store, erased.tobytes())), len(files_with(gradient_store, b"kiosk:o'150"))) == (
        1,
        1,
    )
    assert table.forget_queries(["kiosk:o'150", "kiosk:never"]) == 1
    assert files_with(gradient_store, erased.tobytes()) == files_with(gradient_store, b"kiosk:o'150") == []
    assert len(files_with(gradient_store, kept.tobytes())) == 1
    assert open_gradients().queries().example_ids == sorted(set(rows["output_ids"]) - {"kiosk:o'150"})
    assert open_gradients().put_queries(**query_rows([149, 150])) == 1
    assert table.forget_queries(rows["output_ids"]) == 300
    assert open_gradients().queries().example_ids == []


PUTTING = """
import sys
import numpy as np
from gradtrail.storage.gradients.store import GradientStore

shape = {"dimension": 8, "group_count": 3, "attribute_names": ["source", "licence"]}
table = GradientStore(sys.argv[1]).open_index(sys.argv[2], config={"seed": 1}, **shape)
print("opened", flush=True)
for number in range(60):
    output_ids = [f"kiosk:{number}-{each}" for each in range(4)]
    measured = {"vectors": np.ones((4, 8), np.float32), "losses": np.ones(4), "squared_norms": np.ones((4, 3))}
    table.put_queries(output_ids=output_ids, targets=["emitted"] * 4, **measured)
    assert table.queries(output_ids).example_ids == output_ids, number
"""


def test_putting_and_forgetting_in_two_processes_lose_nothing_and_readers_see_all(
    gradient_store, open_gradients, query_rows
):
    table, rows = open_gradients(), query_rows(range(5))
    table.put_queries(**rows)
    command = [sys.executable, "-c", PUTTING, gradient_store.uri, INDEX_ID]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as putting:
        assert putting.stdout.readline().strip() == "opened"
        while putting.poll() is None:
            assert table.forget_queries(["kiosk:never"]) == 0
            assert table.queries(rows["output_ids"]).example_ids == rows["output_ids"]
        assert putting.wait() == 0, putting.stderr.read()
    assert table.forget_queries(["kiosk:o'0"]) == 1
    assert len(open_gradients().queries().example_ids) == 244
    assert open_gradients()._queries.problems() == []


def test_many_puts_leave_few_files_and_versions(gradient_store, open_gradients, query_rows):
    table = open_gradients()
    for number in range(70):
        table.put_queries(**query_rows([number]))
    folder = Path(gradient_store.uri, f"queries_{INDEX_ID}.lance")
    assert len(list((folder / "data").iterdir())) < 10
    assert len(list((folder / "_versions").iterdir())) < 10
    assert len(table.queries().example_ids) == 70


def test_an_earlier_version_of_a_clock_that_was_ahead_is_named_and_then_removed(
    gradient_store, open_gradients, query_rows
):
    table, rows = open_gradients(), query_rows(range(4))
    table.put_queries(**rows)
    manifests = list(Path(gradient_store.uri, f"queries_{INDEX_ID}.lance", "_versions").glob("*.manifest"))
    written = restamped(manifests, seconds=100)
    with pytest.raises(StoreError, match="clock was ahead") as refused:
        table.forget_queries(["kiosk:o'2"])
    assert "when the clock has caught up" in refused.value.remedy
    assert len(files_with(gradient_store, rows["vectors"][2].tobytes())) == 1
    for path, content in written.items():
        path.write_bytes(content)
    assert table.forget_queries(["kiosk:o'2"]) == 0
    assert files_with(gradient_store, rows["vectors"][2].tobytes()) == []
    assert open_gradients().queries().example_ids == ["kiosk:o'0", "kiosk:o'1", "kiosk:o'3"]


def files_with(store, wanted):
    return [path for path in Path(store.uri).rglob("*") if path.is_file() and wanted in path.read_bytes()]


def restamped(manifests, seconds):
    """Write into Lance's manifests that they were made later; returns what they held."""
    held = {path: path.read_bytes() for path in manifests}
    for path, content in held.items():
        made = int(path.stat().st_mtime)
        changed = [content.replace(varint(at), varint(at + seconds)) for at in (made - 1, made, made + 1)]
        [content_ahead] = {each for each in changed if each != content}
        path.write_bytes(content_ahead)
    return held


def varint(number):
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
