"""Users' code runs from the bytes that were hashed: no bytecode that lies about, nothing before its digest is known."""

from __future__ import annotations

import importlib
import importlib.util
import marshal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradtrail.attribution.adapters.loading import adapter_reference, adapter_source_sha256, load_adapter
from gradtrail.digests import sha256_file
from gradtrail.errors import UntrustedCodeError
from gradtrail.extensions import load_object
from gradtrail.hashed_imports import FINDER

ADAPTER = """
import gradtrail

class Adapter(gradtrail.ClassificationAdapter):
    def build_model(self):
        {body}
    def training_data(self):
        return []
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module name that no other test has."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = f"hashed_{uuid.uuid4().hex[:12]}"
    yield made
    for each in [each for each in sys.modules if each.startswith(made)]:
        sys.modules.pop(each)
    FINDER.pinned.clear()


def keep_other_bytecode(source: Path, marker: Path) -> Path:
    """Bytecode beside a source, whose head fits and whose code leaves an empty file behind."""
    code = compile(f"open({str(marker)!r}, 'w').close()\n" + source.read_text(), str(source), "exec")
    state = source.stat()
    head = [importlib.util.MAGIC_NUMBER, *(each.to_bytes(4, "little") for each in (0, int(state.st_mtime)))]
    kept = Path(importlib.util.cache_from_source(str(source)))
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(b"".join([*head, state.st_size.to_bytes(4, "little")]) + marshal.dumps(code))
    return kept


def load(reference: str, folder: Path, expected: str | None = None) -> object:
    return load_adapter(reference, allowed=[reference], expected_sha256=expected, search_path=folder)


def test_other_bytecode_beside_an_adapter_and_what_it_imports_now_and_later_does_not_run(
    tmp_path: Path, name: str
) -> None:
    marker, files = tmp_path / "ran", {}
    for ending, text in {
        "": f"import {name}_now\n" + ADAPTER.format(body=f"import {name}_later; return {name}_later.VALUE"),
        "_now": "VALUE = 1\n",
        "_later": "VALUE = 2\n",
    }.items():
        files[ending] = tmp_path / f"{name}{ending}.py"
        files[ending].write_text(text)
        keep_other_bytecode(files[ending], marker)
    loaded = load(f"{name}:Adapter", tmp_path)
    assert loaded.adapter.build_model() == 2
    assert not marker.exists()
    assert loaded.source_sha256 == adapter_source_sha256(f"{name}:Adapter", tmp_path) != sha256_file(files[""])


def test_other_bytecode_beside_an_extension_does_not_run(tmp_path: Path, name: str) -> None:
    source = tmp_path / f"{name}.py"
    source.write_text("def rule():\n    return 1\n")
    keep_other_bytecode(source, tmp_path / "ran")
    given = {"allowed": [f"{name}:*"], "setting": "extensions", "search_path": tmp_path}
    loaded = load_object(f"{name}:rule", "a policy rule", **given)
    assert (loaded.value(), loaded.source_sha256) == (1, sha256_file(source))
    assert not (tmp_path / "ran").exists()


def package(folder: Path, name: str, helper: str = "VALUE = 1\n") -> str:
    """A package whose parts leave their names in the file `ran` when they run."""
    inner = folder / name
    inner.mkdir(exist_ok=True)
    note = "open({!r}, 'a').write({!r})\n"
    for file, text in {
        "__init__.py": "",
        "adapter.py": f"from {name}.helper import VALUE\n" + ADAPTER.format(body="return VALUE"),
        "helper.py": helper,
        "unused.py": "",
    }.items():
        (inner / file).write_text(text + note.format(str(folder / "ran"), file + " "))
    return f"{name}.adapter:Adapter"


@pytest.mark.parametrize("changed", ["__init__.py", "helper.py", "unused.py", "adapter.py", "added.py"])
def test_a_package_is_pinned_with_all_its_files_and_nothing_of_it_runs_before_it_is_refused(
    changed: str, tmp_path: Path, name: str
) -> None:
    reference = package(tmp_path, name)
    pinned = adapter_source_sha256(reference, tmp_path)
    assert not (tmp_path / "ran").exists(), "a digest is made without running anything"
    with (tmp_path / name / changed).open("a") as stream:
        stream.write("OTHER = 1\n")
    with pytest.raises(UntrustedCodeError, match="files of code that it is made of"):
        load(reference, tmp_path, pinned)
    assert not (tmp_path / "ran").exists()
    package(tmp_path, name)
    if changed == "added.py":
        (tmp_path / name / changed).unlink()
    assert load(reference, tmp_path, pinned).source_sha256 == pinned
    assert (tmp_path / "ran").read_text().split() == ["__init__.py", "helper.py", "adapter.py"]


def test_a_pin_of_the_one_file_as_older_releases_made_it_holds(tmp_path: Path, name: str) -> None:
    reference = package(tmp_path, name)
    old = sha256_file(tmp_path / name / "adapter.py")
    assert load(reference, tmp_path, old).source_sha256 == old
    single = tmp_path / f"{name}_alone.py"
    single.write_text(ADAPTER.format(body="return 1"))
    assert adapter_source_sha256(f"{single.stem}:Adapter", tmp_path) == sha256_file(single)


def test_a_pinned_file_that_is_imported_later_is_held_to_its_bytes(tmp_path: Path, name: str) -> None:
    later = tmp_path / f"{name}_later.py"
    later.write_text("VALUE = 2\n")
    (tmp_path / f"{name}.py").write_text(ADAPTER.format(body=f"import {later.stem}; return {later.stem}.VALUE"))
    pinned = adapter_source_sha256(f"{name}:Adapter", tmp_path)
    adapter = load(f"{name}:Adapter", tmp_path, pinned).adapter
    later.write_text("VALUE = 3\n")
    with pytest.raises(UntrustedCodeError, match=rf"{later.name} changed"):
        adapter.build_model()
    assert later.stem not in sys.modules


def test_bytecode_without_its_source_is_refused(tmp_path: Path, name: str) -> None:
    helper = tmp_path / f"{name}_helper.py"
    helper.write_text("VALUE = 1\n")
    kept = keep_other_bytecode(helper, tmp_path / "ran")
    kept.rename(helper.with_suffix(".pyc"))
    helper.unlink()
    (tmp_path / f"{name}.py").write_text(f"import {helper.stem}\n" + ADAPTER.format(body="return 1"))
    with pytest.raises(UntrustedCodeError, match="bytecode without its source"):
        load(f"{name}:Adapter", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_python_itself_imported_from_other_bytecode_is_neither_registered_nor_loaded(
    tmp_path: Path, name: str
) -> None:
    source = tmp_path / f"{name}.py"
    source.write_text(ADAPTER.format(body="return 1"))
    keep_other_bytecode(source, tmp_path / "ran")
    sys.path.insert(0, str(tmp_path))
    adapter = importlib.import_module(name).Adapter()
    with pytest.raises(UntrustedCodeError, match="is not what its source compiles to"):
        adapter_reference(adapter)
    with pytest.raises(UntrustedCodeError, match="Delete that file"):
        load(f"{name}:Adapter", tmp_path)
    sys.modules.pop(name)
    Path(importlib.util.cache_from_source(str(source))).unlink()
    importlib.invalidate_caches()
    assert adapter_reference(importlib.import_module(name).Adapter()) == f"{name}:Adapter"
