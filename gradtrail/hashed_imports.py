"""Importing users' code from the bytes that were hashed: compiled anew, never taken from bytecode that lies about.

Python takes a `.pyc` for a source when size and time fit, whatever is in it. Modules below a folder that an adapter or
extension is loaded from are compiled from their source instead, whenever and by whomever they are imported, and one
that was pinned is refused where its bytes are others.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import marshal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType

from gradtrail.digests import sha256_bytes, short
from gradtrail.errors import UntrustedCodeError
from gradtrail.own_sources import OF_INSTALLED_PACKAGES

_HEAD_BYTES = 16


class SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles and runs the source, with no bytecode read or written."""

    def get_code(self, fullname: str) -> CodeType:
        """The source's code.

        Raises:
            UntrustedCodeError: the source is pinned, and has other bytes now.
        """
        path = self.get_filename(fullname)
        source = FINDER.hashed.pop(path, None)
        if source is None:
            source = self.get_data(path)
        pinned = FINDER.pinned.get(path)
        if pinned is not None and sha256_bytes(source) != pinned:
            raise UntrustedCodeError(
                f"{path} changed: {short(sha256_bytes(source))} now, {short(pinned)} when it was pinned.",
                "Restore that source, or register the model again.",
            )
        code: CodeType = self.source_to_code(source, path)
        return code


class OwnFolderFinder:
    """Finds modules as Python does, and lets those of guarded folders be loaded from their source alone.

    Attributes:
        hashed: bytes of sources that were hashed and are not imported yet, by path.
        pinned: digests of sources that may have no other bytes, by path.
    """

    def __init__(self) -> None:
        self.hashed: dict[str, bytes] = {}
        self.pinned: dict[str, str] = {}
        self._folders: dict[Path, set[str]] = {}
        self._asking: set[str] = set()

    def guard(self, root: Path, module_name: str) -> None:
        """Load modules of a folder from their source from now on; of installed packages only the module's own."""
        self._folders.setdefault(root.resolve(), set()).add(module_name.partition(".")[0])
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """What the finders after this one find, with another loader where the source is in a guarded folder.

        Raises:
            UntrustedCodeError: there is bytecode of a module in such a folder, and no source.
        """
        if fullname in self._asking:
            return None
        self._asking.add(fullname)
        try:
            found = _found_by_others(self, fullname, path, target)
        finally:
            self._asking.discard(fullname)
        if found is None or not found.origin or not self._is_guarded(fullname, Path(found.origin)):
            return None
        if isinstance(found.loader, importlib.machinery.SourcelessFileLoader):
            raise UntrustedCodeError(
                f"The module {fullname} is bytecode without its source: {found.origin}.",
                "Remove it, or put the source beside it: what is pinned is the source.",
            )
        if isinstance(found.loader, importlib.machinery.SourceFileLoader) and found.origin.endswith(".py"):
            found.loader = SourceLoader(fullname, found.origin)
            return found
        return None

    def _is_guarded(self, fullname: str, origin: Path) -> bool:
        origin = origin.resolve()
        for root, names in self._folders.items():
            if origin.is_relative_to(root):
                below = origin.relative_to(root)
                if root.name in OF_INSTALLED_PACKAGES:
                    return fullname.partition(".")[0] in names
                return OF_INSTALLED_PACKAGES.isdisjoint(below.parts)
        return False


FINDER = OwnFolderFinder()
"""The one finder of this process."""


def locate(module_name: str) -> Path | None:
    """Where the source of a module is, found without running anything of it or of the packages it is in."""
    path: Sequence[str] | None = None
    spec: importlib.machinery.ModuleSpec | None = None
    parts = module_name.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        loaded = sys.modules.get(name)
        spec = getattr(loaded, "__spec__", None) or _found_by_others(FINDER, name, path, None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and count < len(parts):
            return None
    origin = spec.origin if spec is not None else None
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def import_hashed(module_name: str, root: Path, code: Mapping[Path, bytes], *, pinned: bool) -> ModuleType:
    """Import a module from the bytes of its code that were hashed.

    Args:
        module_name: its dotted name.
        root: the folder that it is imported from.
        code: bytes of every file that it is made of, by path.
        pinned: whether files of it that are imported later have to have these bytes, too.

    Raises:
        UntrustedCodeError: it was imported before from bytecode that is not that of its source, or one of its files
            has other bytes now.
    """
    FINDER.guard(root, module_name)
    for path, source in code.items():
        if pinned:
            FINDER.pinned[str(path)] = sha256_bytes(source)
        else:
            FINDER.pinned.pop(str(path), None)
    refuse_other_bytecode(code)
    FINDER.hashed.update({str(path): source for path, source in code.items()})
    try:
        return importlib.import_module(module_name)
    finally:
        for path in code:
            FINDER.hashed.pop(str(path), None)


def refuse_other_bytecode(paths: Iterable[Path]) -> None:
    """Refuse modules that Python itself imported from bytecode which its source does not give.

    Raises:
        UntrustedCodeError: naming module and bytecode.
    """
    asked = {str(path) for path in paths}
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in asked and not isinstance(_loader(module), SourceLoader):
            kept = Path(getattr(module, "__cached__", None) or "")
            if kept.is_file() and _is_taken_for(kept, Path(str(module.__file__))) and not _is_of(kept, module):
                raise UntrustedCodeError(
                    f"The module {name} was imported from {kept}, which is not what its source compiles to.",
                    "Delete that file and start Python anew.",
                )


def _loader(module: ModuleType) -> object:
    return getattr(getattr(module, "__spec__", None), "loader", None)


def _is_taken_for(kept: Path, source: Path) -> bool:
    """Whether Python takes bytecode for that of the source: it has the version, time and size in its head."""
    head = kept.read_bytes()[:_HEAD_BYTES]
    if len(head) < _HEAD_BYTES or head[:4] != importlib.util.MAGIC_NUMBER or not source.is_file():
        return False
    if int.from_bytes(head[4:8], "little"):
        return True
    state = source.stat()
    noted = int.from_bytes(head[8:12], "little"), int.from_bytes(head[12:16], "little")
    return noted == (int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF)


def _is_of(kept: Path, module: ModuleType) -> bool:
    """Whether bytecode is what the module's source compiles to; it is read here and not run."""
    source = Path(str(module.__file__))
    try:
        code = marshal.loads(kept.read_bytes()[_HEAD_BYTES:])  # noqa: S302 - compared, never run
        return bool(code == compile(source.read_bytes(), str(source), "exec", dont_inherit=True))
    except (ValueError, EOFError, TypeError, SyntaxError):
        return False


def _found_by_others(
    asking: OwnFolderFinder, fullname: str, path: Sequence[str] | None, target: ModuleType | None
) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        if finder is not asking:
            found = finder.find_spec(fullname, path, target)
            if found is not None:
                return found
    return None
