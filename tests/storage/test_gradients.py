import warnings
from pathlib import Path

import lancedb
import numpy as np
import pytest

from gradtrail.errors import DataError, StoreError
from gradtrail.storage.gradients.scan import batch_rows
from gradtrail.storage.gradients.store import GradientStore

INDEX_ID = "1f" * 32


@pytest.fixture
def sealed(open_gradients, gradient_rows):
    table = open_gradients()
    rows = gradient_rows(range(50))
    table.append(**rows)
    table.seal(table.present())
    return table


def raw_table(table):
    return lancedb.connect(str(Path(table.uri).parent)).open_table(f"index_{INDEX_ID}")


def expected_of(rows):
    return dict(zip(rows["example_ids"], rows["content_sha256"], strict=True))


def test_rows_come_back_as_they_were_appended(open_gradients, gradient_rows):
    table, rows = open_gradients(), gradient_rows(range(50))
    assert table.append(**rows) == 50
    assert open_gradients().present() == expected_of(rows)
    assert table.seal(expected_of(rows)) == table.sealed_version()
    batches = list(open_gradients().stream(batch_size=16))
    assert [len(batch.example_ids) for batch in batches] == [16, 16, 16, 2]
    assert [name for batch in batches for name in batch.example_ids] == rows["example_ids"]
    np.testing.assert_array_equal(np.concatenate([batch.vectors for batch in batches]), rows["vectors"])
    np.testing.assert_array_equal(np.concatenate([batch.losses for batch in batches]), rows["losses"])
    np.testing.assert_array_equal(np.concatenate([batch.squared_norms for batch in batches]), rows["squared_norms"])
    assert [name for batch in batches for name in batch.attributes["source"]] == rows["attributes"]["source"]
    assert batches[0].attributes["licence"][:2] == ["CC-BY", ""]


def test_an_attribute_that_no_example_of_a_batch_has_reads_as_empty(open_gradients, gradient_rows):
    table, rows = open_gradients(), gradient_rows(range(3))
    del rows["attributes"]["licence"]
    table.append(**rows)
    table.seal(table.present())
    (batch,) = table.stream()
    assert list(batch.attributes["licence"]) == ["", "", ""]
    assert list(batch.attributes["source"]) == rows["attributes"]["source"]


def test_without_a_size_batches_hold_as_many_rows_as_are_read_fastest(open_gradients, gradient_rows):
    table, rows = open_gradients(), gradient_rows(range(5000))
    table.append(**rows)
    table.seal(table.present())
    for columns in (("vector",), ("loss",)):
        assert [len(batch.example_ids) for batch in table.stream(columns=columns)] == [4096, 904]


def test_streamed_vectors_are_views_of_arrow_memory(sealed):
    batch = next(sealed.stream())
    assert batch.vectors.dtype == np.float32
    assert batch.vectors.base is not None
    assert not batch.vectors.flags.writeable


def test_a_column_that_was_not_asked_for_is_empty(sealed):
    batch = next(sealed.stream(columns=["content_sha256", "loss"]))
    assert (batch.vectors.shape, batch.squared_norms.shape, batch.attributes) == ((50, 0), (50, 0), {})
    assert (len(batch.losses), len(batch.content_sha256)) == (50, 50)


def test_an_index_may_have_no_attributes(gradient_store, gradient_rows):
    table = gradient_store.open_index("2e" * 32, dimension=8, group_count=3, attribute_names=[], config={})
    table.append(**gradient_rows(range(3)) | {"attributes": {}})
    table.seal(table.present())
    assert next(table.stream()).attributes == {}
    assert table.verify() == []


def test_appending_again_writes_only_what_is_missing(open_gradients, gradient_rows):
    table = open_gradients()
    assert table.append(**gradient_rows(range(10))) == 10
    assert table.append(**gradient_rows(range(10))) == 0
    assert open_gradients().append(**gradient_rows(range(5, 15))) == 5
    assert table.append(**gradient_rows([])) == 0
    assert raw_table(table).count_rows() == 15


@pytest.mark.parametrize(
    ("column", "cause"), [("vectors", "gradient"), ("losses", "loss"), ("squared_norms", "squared norm")]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_never_gets_in(open_gradients, gradient_rows, column, cause, bad):
    table, rows = open_gradients(), gradient_rows(range(10))
    rows[column][7] = bad
    with pytest.raises(DataError, match=rf"The {cause} of example example-7 is not finite"):
        table.append(**rows)
    assert table.present() == {}


def test_a_batch_with_a_duplicate_or_an_empty_id_is_refused(open_gradients, gradient_rows):
    with pytest.raises(DataError, match="more than once in one batch: example-3"):
        open_gradients().append(**gradient_rows([1, 3, 2, 3]))
    with pytest.raises(DataError, match="without example id"):
        open_gradients().append(**gradient_rows([1]) | {"example_ids": [""]})
    assert open_gradients().present() == {}


@pytest.mark.parametrize("column", ["vectors", "losses", "squared_norms"])
def test_a_mis_shaped_batch_is_refused_with_both_shapes(open_gradients, gradient_rows, column):
    rows = gradient_rows(range(10))
    rows[column] = rows[column][:, :-1] if rows[column].ndim > 1 else rows[column][:-1]
    with pytest.raises(DataError, match=r"have shape \(.*this index needs \(10"):
        open_gradients().append(**rows)


def test_what_arrow_cannot_hold_exactly_is_refused(open_gradients, gradient_rows):
    rows = gradient_rows(range(2))
    with pytest.raises(DataError, match="float64; the store holds float32"):
        open_gradients().append(**rows | {"vectors": rows["vectors"].astype(np.float64)})
    with pytest.raises(DataError, match="example id of a row is not valid text"):
        open_gradients().append(**rows | {"example_ids": ["a", "\ud800"]})
    with pytest.raises(DataError, match="Attribute author"):
        open_gradients().append(**rows | {"attributes": {"author": ["a", "b"]}})
    assert open_gradients().present() == {}


def test_an_id_stored_with_other_content_is_refused_and_nothing_of_the_batch_written(open_gradients, gradient_rows):
    table = open_gradients()
    table.append(**gradient_rows(range(3)))
    rows = gradient_rows(range(6))
    rows["content_sha256"][2] = "0" * 64
    with pytest.raises(DataError, match="Example example-2 is stored already with other content"):
        open_gradients().append(**rows)
    assert len(table.present()) == 3


def test_another_process_that_stored_other_content_meanwhile_is_noticed(open_gradients, gradient_rows):
    late, early = open_gradients(), open_gradients()
    assert late.append(**gradient_rows([0])) == 1
    early.append(**gradient_rows([1]))
    rows = gradient_rows([1, 2])
    rows["content_sha256"][0] = "0" * 64
    with pytest.raises(DataError, match="example-1 is stored already with other content"):
        late.append(**rows)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dimension": 9}, "dimension is 8, asked for 9"),
        ({"group_count": 2}, "group_count is 3, asked for 2"),
        ({"attribute_names": ["source"]}, r"attribute_names is \['licence', 'source'\], asked for \['source'\]"),
        ({"config": {"seed": 2}}, "config is {'seed': 1}, asked for {'seed': 2}"),
    ],
)
def test_an_index_opened_with_another_configuration_is_refused(open_gradients, gradient_store, changed, named):
    open_gradients()
    asked = {"dimension": 8, "group_count": 3, "attribute_names": ["licence", "source"], "config": {"seed": 1}}
    with pytest.raises(StoreError, match=f"exists with another configuration: {named}"):
        gradient_store.open_index(INDEX_ID, **asked | changed)


def test_an_existing_index_knows_what_it_was_made_for(open_gradients, gradient_store):
    assert gradient_store.existing(INDEX_ID) is None
    assert open_gradients().uri.endswith(f"/gradients/index_{INDEX_ID}.lance")
    table = gradient_store.existing(INDEX_ID)
    assert (table.dimension, table.group_count, table.attribute_names) == (8, 3, ("licence", "source"))
    assert table.config == {"seed": 1}
    assert Path(table.uri).is_dir()


@pytest.mark.parametrize("index_id", ["", "a", "../" + "a" * 61, "A" * 64])
def test_only_an_index_id_names_a_table(gradient_store, index_id):
    with pytest.raises(StoreError, match="is not an index id"):
        gradient_store.existing(index_id)


def test_a_table_of_another_program_is_refused(gradient_store, gradient_rows):
    lancedb.connect(gradient_store.uri).create_table(f"index_{INDEX_ID}", data=[{"vector": [1.0, 2.0]}])
    with pytest.raises(StoreError, match="no readable description"):
        gradient_store.existing(INDEX_ID)


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/gradients.*permissions"):
        GradientStore(str(tmp_path / "file" / "gradients"))


def test_an_unfinished_index_is_not_read_as_if_complete(open_gradients, gradient_rows):
    table = open_gradients()
    table.append(**gradient_rows(range(5)))
    with pytest.raises(StoreError, match="not complete"):
        next(table.stream())
    assert len(next(table.stream(version=2)).example_ids) == 5
    with pytest.raises(StoreError, match="Opening version 99"):
        next(table.stream(version=99))
    assert (table.sealed_version(), table.seal_record()) == (None, None)
    assert "is not sealed" in table.verify()[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda expected: expected | {"example-77": "0" * 64}, "Missing: example-77."),
        (lambda expected: {k: v for k, v in expected.items() if k != "example-4"}, "Not expected: example-4."),
        (lambda expected: expected | {"example-4": "0" * 64}, "Of other content: example-4."),
        (
            lambda expected: expected | {f"new-{n}": "0" for n in range(7)},
            "Missing: new-0, new-1, new-2, new-3, new-4 and 2 more.",
        ),
    ],
)
@pytest.mark.parametrize("sealed_before", [False, True])
def test_a_seal_names_what_differs_from_what_was_expected(open_gradients, gradient_rows, change, named, sealed_before):
    table, rows = open_gradients(), gradient_rows(range(20))
    table.append(**rows)
    if sealed_before:
        table.seal(expected_of(rows))
    with pytest.raises(StoreError, match="cannot be sealed") as refusal:
        table.seal(change(expected_of(rows)))
    assert named in str(refusal.value)
    assert (table.sealed_version() is not None) == sealed_before


def test_duplicates_that_another_program_wrote_are_found_when_sealing(open_gradients, gradient_rows):
    table, rows = open_gradients(), gradient_rows(range(5))
    table.append(**rows)
    raw = raw_table(table)
    raw.add(raw.search().where("example_id = 'example-3'").limit(None).to_arrow())
    with pytest.raises(StoreError, match=r"Held more than once: example-3\."):
        table.seal(expected_of(rows))


def test_sealing_twice_gives_the_same_version(sealed, open_gradients):
    version = sealed.sealed_version()
    assert open_gradients().seal(sealed.present()) == version
    assert open_gradients().sealed_version() == version


def test_a_sealed_index_takes_no_new_rows_but_ignores_repeated_ones(sealed, gradient_rows):
    assert sealed.append(**gradient_rows(range(50))) == 0
    with pytest.raises(StoreError, match="is sealed and does not hold example-50"):
        sealed.append(**gradient_rows(range(60)))


def test_the_pinned_version_is_read_whatever_was_written_later(sealed, open_gradients):
    before = next(sealed.stream())
    raw = raw_table(sealed)
    raw.delete("example_id = 'example-0'")
    raw.update(where="example_id = 'example-1'", values={"loss": 99.0})
    after = next(open_gradients().stream())
    assert after.example_ids == before.example_ids
    np.testing.assert_array_equal(after.losses, before.losses)
    assert len(open_gradients().present()) == 49
    assert open_gradients().verify() == []


def test_many_small_appends_are_compacted_once_when_sealing(open_gradients, gradient_rows):
    table = open_gradients()
    for number in range(40):
        table.append(**gradient_rows([number]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table.seal(table.present())
    assert raw_table(table).stats()["fragment_stats"]["num_fragments"] == 1
    assert len(list((Path(table.uri) / "data").iterdir())) == 1
    assert len(next(table.stream()).example_ids) == 40
    assert table.verify() == []


def test_order_and_size_of_batches_do_not_change_the_digest_of_the_rows(gradient_store, gradient_rows):
    digests = set()
    for index_id, batches in (("aa" * 32, [range(30)]), ("bb" * 32, [range(20, 30), range(7), range(5, 20)])):
        table = gradient_store.open_index(
            index_id, dimension=8, group_count=3, attribute_names=["source", "licence"], config={}
        )
        for batch in batches:
            table.append(**gradient_rows(batch))
        table.seal(table.present())
        digests.add(table.seal_record().rows_sha256)
    assert len(digests) == 1


def test_the_estimate_is_close_to_what_the_disk_shows(gradient_store):
    rows, dimension, groups = 2000, 256, 6
    table = gradient_store.open_index(INDEX_ID, dimension=dimension, group_count=groups, attribute_names=[], config={})
    generator = np.random.default_rng(0)
    table.append(
        example_ids=[f"example-{number}" for number in range(rows)],
        content_sha256=[generator.bytes(32).hex() for _ in range(rows)],
        vectors=generator.normal(size=(rows, dimension)).astype(np.float32),
        losses=generator.normal(size=rows),
        squared_norms=generator.normal(size=(rows, groups)),
        attributes={},
    )
    on_disk = sum(path.stat().st_size for path in Path(gradient_store.uri).rglob("*") if path.is_file())
    assert GradientStore.estimate(rows, dimension, groups) == pytest.approx(on_disk, rel=0.15)


def test_batches_are_larger_only_where_little_is_made_of_each_row(open_gradients):
    assert (batch_rows(1024), batch_rows(1024, "int8"), batch_rows(16384, "int8")) == (4096, 4096, 2048)
    assert (batch_rows(1024, "int8", 100), batch_rows(1024, "int8", 100_000)) == (16384, 1024)
    table = open_gradients()
    assert table.rows_at_once(1) > table.rows_at_once(10_000_000) == 1024
