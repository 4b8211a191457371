import pytest

from gradtrail.digests import sha256_bytes
from gradtrail.errors import NotFoundError, StoreError
from gradtrail.storage.files.payloads import PayloadStore


@pytest.fixture
def payload_store(tmp_path):
    return PayloadStore(tmp_path / "payloads")


def test_a_payload_comes_back_under_its_digest(payload_store):
    sha256 = payload_store.put(b"seven")
    assert sha256 == sha256_bytes(b"seven")
    assert payload_store.get(sha256) == b"seven"
    assert sha256 in payload_store
    assert "0" * 64 not in payload_store


def test_putting_twice_keeps_one_file_and_leaves_no_temporary(payload_store):
    sha256 = payload_store.put(b"seven")
    payload_store.put(b"seven")
    files = [path for path in payload_store.root.rglob("*") if path.is_file()]
    assert files == [payload_store.root / sha256[:2] / sha256]


def test_a_deleted_payload_is_gone_and_says_so(payload_store):
    sha256 = payload_store.put(b"seven")
    assert payload_store.delete(sha256)
    assert not payload_store.delete(sha256)
    with pytest.raises(NotFoundError, match=sha256):
        payload_store.get(sha256)


def test_a_flipped_byte_is_named_and_a_new_put_mends_it(payload_store):
    sha256 = payload_store.put(b"seven")
    (payload_store.root / sha256[:2] / sha256).write_bytes(b"sEven")
    with pytest.raises(StoreError, match=f"{sha256} is damaged"):
        payload_store.get(sha256)
    payload_store.put(b"seven")
    assert payload_store.get(sha256) == b"seven"


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "", "a" * 63, "a" * 64 + "\n", "a" * 62 + "/."])
def test_only_a_digest_becomes_a_path(payload_store, name):
    for use in (payload_store.get, payload_store.delete, payload_store.__contains__):
        with pytest.raises(StoreError, match="not the digest of a payload"):
            use(name)


def test_a_folder_in_place_of_a_payload_is_an_error_not_a_crash(payload_store):
    (payload_store.root / "aa" / ("a" * 64)).mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be read"):
        payload_store.get("a" * 64)
