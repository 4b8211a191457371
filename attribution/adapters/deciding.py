"""What of an adapter decides the numbers: its class, its source and that of modules beside it, and its options.

Comments, docstrings and what only words or pictures in reports come from do not count, so that they may be improved
without measuring anew. Not seen are other packages, modules imported by a computed name, files that are read, and what
is changed after the adapter was made.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from gradtrail.attribution.adapters.base import ModelAdapter
from gradtrail.digests import content_sha256, sha256_bytes, sha256_file
from gradtrail.own_sources import sources_of

_ONLY_SHOWN = frozenset({"preview", "wording", "meaning_of_scores", "is_right"})
"""Methods of adapters that no number comes from."""
_OWN = "gradtrail"
_LARGEST_OPTION = 1 << 24
_WITHOUT_MEANING = frozenset({"kind", "type_comment", "ctx"})


def deciding_digests(adapter: ModelAdapter) -> dict[str, str]:
    """Digests of all that is known to decide what a new adapter measures, by what each is of.

    `class` is the class's name, a path one of source below the folder that the adapter's module is imported from, and
    `self.NAME` an option: a plain value or tensor that the adapter got when it was made.
    """
    kind = type(adapter)
    found = {"class": sha256_bytes(kind.__qualname__.encode())}
    own = getattr(sys.modules.get(kind.__module__), "__file__", None)
    root, sources = sources_of(kind.__module__, Path(own)) if own else (Path(), [])
    for path in sources:
        found[path.relative_to(root).as_posix()] = source_digest(path.read_bytes())
    for name, value in vars(adapter).items():
        digest = _option_digest(value)
        if digest:
            found[f"self.{name}"] = digest
    return dict(sorted(found.items()))


def own_sources(module_name: str) -> dict[Path, str]:
    """Digests of the bytes of an imported module's source and of those below its folder that it imports."""
    own = getattr(sys.modules.get(module_name), "__file__", None)
    return {path: sha256_file(path) for path in sources_of(module_name, Path(own))[1]} if own else {}


def library_versions(*made_of: object) -> dict[str, str]:
    """Versions of torch, of gradtrail and of every library that a class of these objects comes from, by name.

    Of a module the parts count, too: a model built from transformers or timm names it.
    """
    objects = [part for each in made_of for part in (each.modules() if isinstance(each, torch.nn.Module) else (each,))]
    packages = {kind.__module__.partition(".")[0] for each in objects for kind in type(each).__mro__}
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in {*packages, "torch", _OWN}}
    return {name: str(version) for name, version in sorted(versions.items()) if version is not None}


def source_digest(source: bytes) -> str:
    """Digest of what a Python source does: of its syntax tree, without docstrings and what is only shown."""
    digest = hashlib.sha256()
    waiting: list[object] = [ast.parse(source)]
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.AST):
            digest.update(f"({type(part).__name__}".encode())
            waiting.append(")")
            for name, value in reversed(list(ast.iter_fields(_stripped(part)))):
                if name not in _WITHOUT_MEANING and value is not None and value != []:
                    waiting += [value, f".{name}"]
        elif isinstance(part, list):
            waiting += ["]", *reversed(part), "["]
        else:
            digest.update(f" {type(part).__name__} {part!r}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _stripped(node: ast.AST) -> ast.AST:
    """The node without its docstring and, in a class, without methods that are only shown."""
    body = getattr(node, "body", None)
    if not isinstance(body, list) or not body:
        return node
    if _is_text(body[0]) and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        node.body = body[1:]
    if isinstance(node, ast.ClassDef):
        node.body = [each for each in node.body if getattr(each, "name", None) not in _ONLY_SHOWN]
    return node


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _option_digest(value: object) -> str:
    """Digest of a plain value or tensor; empty for anything else, for None, and for a path, which may move.

    What holds more than 16 million numbers is data, which the dataset version says, and no option.
    """
    if value is None or (isinstance(value, str) and Path(value).is_absolute()):
        return ""
    if isinstance(value, torch.dtype | torch.device):
        value = str(value)
    try:
        return content_sha256(value, None) if _size(value) <= _LARGEST_OPTION else ""
    except (TypeError, ValueError, RuntimeError):
        return ""


def _size(value: object) -> int:
    """How many numbers and texts a plain value holds.

    Raises:
        TypeError: its bytes are not the same in every process.
    """
    waiting, size = [value], 0
    while waiting and size <= _LARGEST_OPTION:
        part = waiting.pop()
        if isinstance(part, torch.Tensor):
            size += part.numel()
        elif isinstance(part, np.ndarray) and not part.dtype.hasobject:
            size += part.size
        elif isinstance(part, list | tuple):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
        elif part is None or isinstance(part, bool | int | float | str | bytes | np.number):
            size += 1
        else:
            raise TypeError(f"a {type(part).__name__} is no plain value")
    return size
