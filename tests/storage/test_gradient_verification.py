import hashlib
import json
from pathlib import Path

import lancedb
import numpy as np
import pytest

from gradtrail.errors import StoreError
from gradtrail.storage.gradients.store import GradientStore

INDEX_ID = "1f" * 32


@pytest.fixture
def sealed(open_gradients, gradient_rows):
    table = open_gradients()
    table.append(**gradient_rows(range(25)))
    table.append(**gradient_rows(range(25, 50)))
    table.seal(table.present())
    return table


def verify_afresh(table):
    return GradientStore(str(Path(table.uri).parent)).existing(INDEX_ID).verify()


def test_a_sound_index_has_no_problems(sealed):
    assert verify_afresh(sealed) == []
    seal = sealed.seal_record()
    assert (seal.rows, seal.version, len(seal.rows_sha256)) == (50, sealed.sealed_version(), 64)


def test_a_flipped_byte_of_a_vector_names_its_example(sealed, gradient_rows):
    needle = gradient_rows([31])["vectors"].tobytes()
    (file,) = (path for path in (Path(sealed.uri) / "data").iterdir() if needle in path.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(needle) + 5] ^= 1
    file.write_bytes(content)
    problems = verify_afresh(sealed)
    assert any("Changed since they were measured: example-31." in problem for problem in problems)
    assert any("was sealed" in problem for problem in problems)


def test_a_vector_that_became_infinite_is_named(sealed, gradient_rows):
    needle = gradient_rows([31])["vectors"].tobytes()
    (file,) = (path for path in (Path(sealed.uri) / "data").iterdir() if needle in path.read_bytes())
    file.write_bytes(file.read_bytes().replace(needle[:4], np.float32(np.inf).tobytes()))
    assert any("Not finite: example-31." in problem for problem in verify_afresh(sealed))


def test_infinite_vectors_of_every_batch_are_named(sealed, gradient_rows):
    for number in (3, 31):
        needle = gradient_rows([number])["vectors"].tobytes()
        (file,) = (path for path in (Path(sealed.uri) / "data").iterdir() if needle in path.read_bytes())
        file.write_bytes(file.read_bytes().replace(needle[:4], np.float32(np.inf).tobytes()))
    assert any("Not finite: example-3, example-31." in problem for problem in verify_afresh(sealed))


def test_the_sealed_digest_is_of_bytes_that_never_change(open_gradients, gradient_rows):
    """Spelt out: with any other bytes, every index that is sealed already would seem damaged."""
    rows, digests = gradient_rows([4, 5]), []
    for number in range(2):
        attributes = [rows["attributes"][name][number] or "" for name in ("licence", "source")]
        row = json.dumps([rows["example_ids"][number], rows["content_sha256"][number], *attributes]).encode()
        row += rows["vectors"][number].astype("<f4").tobytes() + np.array(rows["losses"][number], "<f8").tobytes()
        digests.append(hashlib.sha256(row + rows["squared_norms"][number].astype("<f8").tobytes()).digest())
    table = open_gradients()
    table.append(**rows)
    table.seal(table.present())
    assert table.seal_record().rows_sha256 == hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def test_any_flipped_byte_of_the_data_is_either_reported_or_changes_nothing(sealed, gradient_rows):
    rows, reported = gradient_rows(range(50)), 0
    for file in sorted((Path(sealed.uri) / "data").iterdir()):
        content = file.read_bytes()
        for position in range(0, len(content), 97):
            damaged = bytearray(content)
            damaged[position] ^= 0x41
            file.write_bytes(damaged)
            problems = verify_afresh(sealed)
            if problems:
                reported += 1
                assert all(INDEX_ID in problem for problem in problems)
            else:
                batches = list(GradientStore(str(Path(sealed.uri).parent)).existing(INDEX_ID).stream())
                np.testing.assert_array_equal(np.concatenate([batch.vectors for batch in batches]), rows["vectors"])
        file.write_bytes(content)
    assert reported > 10
    assert verify_afresh(sealed) == []


def test_a_missing_data_file_is_reported(sealed):
    next((Path(sealed.uri) / "data").iterdir()).unlink()
    (problem,) = verify_afresh(sealed)
    assert INDEX_ID in problem
    assert "Restore" in problem
    with pytest.raises(StoreError, match="Restore"):
        list(GradientStore(str(Path(sealed.uri).parent)).existing(INDEX_ID).stream())


def test_a_seal_moved_to_other_rows_is_reported(sealed):
    raw = lancedb.connect(str(Path(sealed.uri).parent)).open_table(f"index_{INDEX_ID}")
    raw.delete("example_id = 'example-8'")
    raw.tags.update("complete", raw.version)
    problems = verify_afresh(sealed)
    assert any("It holds 49 rows; 50 were sealed." in problem for problem in problems)
    assert any("was sealed" in problem and "digest" in problem for problem in problems)


def test_a_manifest_cut_short_is_an_error_that_names_the_table(sealed):
    for manifest in (Path(sealed.uri) / "_versions").iterdir():
        manifest.write_bytes(manifest.read_bytes()[:20])
    with pytest.raises(StoreError, match=f"index_{INDEX_ID}"):
        verify_afresh(sealed)


def test_a_seal_without_its_record_is_reported_and_sealing_again_mends_it(sealed):
    lancedb.connect(str(Path(sealed.uri).parent)).drop_table("seals")
    assert "record of its seal is gone" in verify_afresh(sealed)[0]
    version = sealed.sealed_version()
    assert sealed.seal(sealed.present()) == version
    assert verify_afresh(sealed) == []


def test_an_index_that_lost_the_record_of_its_seal_keeps_its_pinned_version(sealed):
    folder, expected, version = Path(sealed.uri).parent, sealed.present(), sealed.sealed_version()
    lancedb.connect(str(folder)).drop_table("seals")
    lancedb.connect(str(folder)).open_table(f"index_{INDEX_ID}").delete("example_id = 'example-8'")
    again = GradientStore(str(folder)).existing(INDEX_ID)
    assert again.seal(expected) == version == again.sealed_version()
    assert again.seal_record().rows == 50
    assert verify_afresh(sealed) == []
