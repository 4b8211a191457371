import lancedb
import numpy as np
import pyarrow as pa
import pytest

from gradtrail.errors import DataError, StoreError, UsageError
from gradtrail.storage.gradients import vector_codes
from gradtrail.storage.gradients.store import GradientStore

INDEX_ID = "1f" * 32
DIMENSION, GROUPS = 48, (4, 12, 32)


def rows_of(vectors):
    numbers = range(len(vectors))
    norms = [np.square(part.astype(np.float64)).sum(1) for part in np.split(vectors, np.cumsum(GROUPS)[:-1], axis=1)]
    return {
        "example_ids": [f"example-{number}" for number in numbers],
        "content_sha256": [f"{number:064x}" for number in numbers],
        "vectors": vectors.astype(np.float32),
        "losses": np.ones(len(vectors)),
        "squared_norms": np.stack(norms, axis=1),
        "attributes": {},
    }


def gradients(rows=200, seed=0):
    """Rows and groups whose sizes differ by many orders of magnitude, as gradients' do."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(rows, DIMENSION))
    vectors *= 10 ** generator.uniform(-3, 1, size=(rows, 1))
    return (vectors * np.repeat([1, 0.1, 0.01], GROUPS)).astype(np.float32)


@pytest.fixture
def open_typed(gradient_store):
    def opened(dtype):
        return GradientStore(gradient_store.uri).open_index(
            INDEX_ID,
            dimension=DIMENSION,
            group_count=len(GROUPS),
            attribute_names=[],
            config={},
            dtype=dtype,
            group_dimensions=GROUPS,
        )

    return opened


@pytest.mark.parametrize(
    ("dtype", "error", "least"), [("float32", 0, 0.999999), ("float16", 1e-3, 0.99999), ("int8", 5e-3, 0.999)]
)
def test_scores_of_each_type_agree_with_those_of_float32(open_typed, dtype, error, least):
    vectors = gradients()
    table = open_typed(dtype)
    assert table.append(**rows_of(vectors)) == len(vectors)
    table.seal(table.present())
    found = np.concatenate([batch.vectors for batch in open_typed(dtype).stream(batch_size=64)])
    assert found.dtype == np.float32
    for columns in np.split(np.arange(DIMENSION), np.cumsum(GROUPS)[:-1]):
        largest = np.abs(vectors[:, columns]).max(axis=1, keepdims=True)
        assert (np.abs(found - vectors)[:, columns] <= error * largest + 1e-7).all()
    queries = np.random.default_rng(1).normal(size=(16, DIMENSION)).astype(np.float32)
    for query in queries:
        assert np.corrcoef(vectors @ query, found @ query)[0, 1] >= least
    assert table.verify() == []


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_table_and_its_description_say_how_vectors_are_kept(open_typed, gradient_store, dtype):
    open_typed(dtype)
    found = gradient_store.existing(INDEX_ID)
    assert found.vector_type == dtype
    with pytest.raises(StoreError, match=f"dtype is {dtype}, asked for None"):
        open_typed("float32")


def test_int8_takes_a_quarter_of_the_space_of_float32(gradient_store):
    sizes = {dtype: GradientStore.estimate(1000, 4096, 8, dtype) for dtype in ("float32", "float16", "int8")}
    assert sizes["float32"] == GradientStore.estimate(1000, 4096, 8)
    assert sizes["float16"] == pytest.approx(sizes["float32"] / 2, rel=0.05)
    assert sizes["int8"] == pytest.approx(sizes["float32"] / 4, rel=0.1)


def test_small_gradients_are_not_rounded_to_zero_by_int8(open_typed):
    vectors = gradients(20) * np.float32(1e-20)
    table = open_typed("int8")
    table.append(**rows_of(vectors))
    table.seal(table.present())
    (batch,) = table.stream()
    assert np.allclose(batch.vectors, vectors, rtol=0, atol=0.01 * 1e-20 * 30)
    assert (np.abs(batch.vectors).max(axis=1) > 0).all()


def test_a_group_without_any_gradient_stays_zero(open_typed):
    vectors = gradients(5)
    vectors[2, 4:16] = 0
    table = open_typed("int8")
    table.append(**rows_of(vectors))
    table.seal(table.present())
    (batch,) = table.stream()
    assert not batch.vectors[2, 4:16].any()


def test_a_gradient_beyond_half_precision_is_refused_with_the_example_and_nothing_is_written(open_typed):
    vectors = gradients(5)
    vectors[3, 0] = 1e5
    table = open_typed("float16")
    with pytest.raises(
        DataError, match=r"gradient of example example-3 reaches 1e\+05; float16 holds at most 65504"
    ) as refusal:
        table.append(**rows_of(vectors))
    assert "int8" in refusal.value.remedy
    assert table.present() == {}


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_before_they_are_encoded(open_typed, dtype, bad):
    vectors = gradients(5)
    vectors[1, 7] = bad
    with pytest.raises(DataError, match="gradient of example example-1 is not finite"):
        open_typed(dtype).append(**rows_of(vectors))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_changed_vector_is_named_by_verify(open_typed, gradient_store, dtype):
    vectors = gradients(5)
    table = open_typed(dtype)
    table.append(**rows_of(vectors))
    raw = lancedb.connect(gradient_store.uri).open_table(f"index_{INDEX_ID}")
    whole = raw.to_arrow()
    names = [f"example-{number}" for number in (0, 1, 2, 4, 3)]
    swapped = whole.set_column(0, whole.schema.field(0), [names])
    raw.delete("loss > 0")
    raw.add(swapped)
    with pytest.raises(StoreError, match="Changed since they were measured: example-4, example-3"):
        table.seal(dict(zip(names, whole["content_sha256"].to_pylist(), strict=True)))


def test_a_changed_scale_is_found(open_typed, gradient_store):
    table = open_typed("int8")
    table.append(**rows_of(gradients(3)))
    raw = lancedb.connect(gradient_store.uri).open_table(f"index_{INDEX_ID}")
    whole = raw.to_arrow()
    scales = whole["scales"].to_pylist()
    scales[1][2] *= 2
    place = whole.schema.get_field_index("scales")
    raw.delete("loss > 0")
    raw.add(
        whole.set_column(
            place, whole.schema.field(place), pa.chunked_array([scales], type=whole.schema.field(place).type)
        )
    )
    with pytest.raises(StoreError, match="Changed since they were measured: example-1"):
        table.seal(table.present())


def test_outputs_are_kept_whole_whatever_the_type(open_typed):
    table, rows = open_typed("int8"), rows_of(gradients(4))
    table.put_queries(
        output_ids=rows["example_ids"],
        targets=["emitted"] * 4,
        vectors=rows["vectors"],
        losses=rows["losses"],
        squared_norms=rows["squared_norms"],
    )
    np.testing.assert_array_equal(table.queries(rows["example_ids"]).vectors, rows["vectors"])


def test_other_types_and_int8_without_groups_are_refused(gradient_store):
    asked = {"dimension": 4, "group_count": 1, "attribute_names": [], "config": {}}
    with pytest.raises(UsageError, match="cannot be stored as 'bfloat16'"):
        gradient_store.open_index(INDEX_ID, **asked, dtype="bfloat16")
    with pytest.raises(UsageError, match="scale per group"):
        gradient_store.open_index(INDEX_ID, **asked, dtype="int8")
    with pytest.raises(UsageError, match="add up to 3, not to the 4"):
        gradient_store.open_index(INDEX_ID, **asked, dtype="int8", group_dimensions=[3])


def test_vectors_in_any_type_are_read_without_a_warning(open_typed, recwarn):
    for dtype in ("float16",):
        table = open_typed(dtype)
        table.append(**rows_of(gradients(5)))
        table.seal(table.present())
        next(table.stream())
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_pieces_that_are_widened_one_at_a_time_are_the_vectors(open_typed, dtype, monkeypatch):
    monkeypatch.setattr(vector_codes, "_CACHED_VALUES", 30 * DIMENSION)
    table = open_typed(dtype)
    table.append(**rows_of(gradients()))
    table.seal(table.present())
    for batch in table.stream(batch_size=64):
        pieces = list(batch.pieces())
        assert dtype == "float32" or [len(piece) for piece in pieces] in ([30, 30, 4], [8])
        assert batch.shape == batch.vectors.shape
        assert np.array_equal(np.concatenate(pieces), batch.vectors)
