"""Which files a module of a user's is made of: its source, its package's, and what it imports from its own folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from gradtrail.digests import sha256_bytes, sha256_json

OF_INSTALLED_PACKAGES = frozenset({"site-packages", "dist-packages"})
_OWN = "gradtrail"
_CODE_SUFFIXES = frozenset({".py", ".so", ".pyd", ".dll", ".dylib"})


def code_of(module_name: str, own: Path) -> tuple[Path, dict[Path, bytes]]:
    """The folder that a module is imported from, and the bytes of every file of code that it is made of.

    These are its source, what that imports from its own folder, and all code of the package that it is in. Nothing of
    it runs. Of gradtrail's own modules only the one counts.
    """
    root, sources = sources_of(module_name, own)
    files = dict.fromkeys([own, *sources])
    top = module_name.partition(".")[0]
    package = root / top
    if top != _OWN and (package / "__init__.py").is_file():
        files |= dict.fromkeys(path for path in package.rglob("*") if path.suffix in _CODE_SUFFIXES and path.is_file())
    return root, {path: path.read_bytes() for path in sorted(files)}


def code_sha256(root: Path, own: Path, code: Mapping[Path, bytes]) -> str:
    """Digest of a module's code: of its one file, or of the names and digests of all of them."""
    if len(code) == 1:
        return sha256_bytes(code[own])
    return sha256_json({path.relative_to(root).as_posix(): sha256_bytes(source) for path, source in code.items()})


def sources_of(module_name: str, own: Path) -> tuple[Path, list[Path]]:
    """The folder that a module is imported from, its source, and those below the folder that it imports, in order.

    Of an installed package only its own modules count, and of gradtrail's own adapters only theirs.
    """
    depth = module_name.count(".") + (own.name == "__init__.py")
    root = own.parents[depth]
    top = module_name.partition(".")[0]
    found: dict[Path, None] = {}
    waiting = [] if top == _OWN else [module_name]
    seen = {module_name}
    if top == _OWN:
        found[own] = None
    while waiting:
        name = waiting.pop()
        for path, held_by in _files(root, name):
            if path in found:
                continue
            found[path] = None
            for other in _imported(_parsed(path), held_by, is_package=path.name == "__init__.py"):
                first = other.partition(".")[0]
                if other not in seen and first != _OWN and (root.name not in OF_INSTALLED_PACKAGES or first == top):
                    seen.add(other)
                    waiting.append(other)
    return root, sorted(found)


def _files(root: Path, name: str) -> Iterator[tuple[Path, str]]:
    """The files below a folder that importing a name runs, and the module that each is."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:count])
        module = ".".join(parts[:count])
        if (package := place / "__init__.py").is_file():
            yield package, module
        elif (single := place.with_name(f"{place.name}.py")).is_file():
            yield single, module


def _imported(tree: ast.AST, module_name: str, *, is_package: bool) -> Iterator[str]:
    """What a module imports, by absolute name; what comes `from` one may be an attribute of it or a module."""
    package = module_name if is_package else module_name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            named = ".".join([*filter(None, base), *filter(None, [node.module])])
            for each in node.names:
                yield ".".join(filter(None, [named, each.name]))


def _parsed(path: Path) -> ast.AST:
    """The syntax tree of a source; an empty one where it is none, which importing it will say."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])
