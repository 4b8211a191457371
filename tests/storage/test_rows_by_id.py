import numpy as np
import pytest

from gradtrail.errors import StoreError


def test_rows_are_found_by_id_and_unknown_ids_passed_over(open_gradients, gradient_rows):
    table, rows = open_gradients(), gradient_rows(range(50))
    table.append(**rows)
    version = table.seal(table.present())
    wanted = [rows["example_ids"][place] for place in (41, 7, 7, 19)]
    batches = list(table.rows_of([*wanted, "it's nobody"], version=version))
    found = {name: vector for batch in batches for name, vector in zip(batch.example_ids, batch.vectors, strict=True)}
    assert sorted(found) == sorted(set(wanted))
    for place in (41, 7, 19):
        np.testing.assert_array_equal(found[rows["example_ids"][place]], rows["vectors"][place])
    assert list(table.rows_of([], version=version)) == []


def test_more_ids_than_one_scan_takes(open_gradients, gradient_rows):
    table, rows = open_gradients(), gradient_rows(range(2500))
    table.append(**rows)
    version = table.seal(table.present())
    batches = list(table.rows_of(rows["example_ids"][100:2300], version=version, columns=["loss"]))
    assert sorted(name for batch in batches for name in batch.example_ids) == sorted(rows["example_ids"][100:2300])
    assert all(batch.vectors.shape[1] == 0 for batch in batches)


def test_a_version_that_does_not_exist_is_refused(open_gradients, gradient_rows):
    table = open_gradients()
    table.append(**gradient_rows(range(3)))
    with pytest.raises(StoreError, match="Opening version 99"):
        list(table.rows_of(["train-1"], version=99))
