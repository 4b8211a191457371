"""Write the door of each sub-room: `python scripts/doors.py`; with `--check`, fail where one is out of date.

A sub-room's `__init__.pyi` lists what leaves it: the names that code outside of it, tests aside, imports from its
modules, and what PUBLIC adds for users. `lazy_loader` reads the same list, so a name loads its module on first use.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("attribution", "lineage", "reports", "storage", "tasks")
READERS = (*ROOMS, "flows", "gradtrail", "benchmarks", "examples", "deploy")
PUBLIC = {
    "gradtrail.attribution.adapters": {
        "base": ("Batch", "ClassificationAdapter", "ModelAdapter", "RegressionAdapter"),
        "causal_language_model": ("CausalLMAdapter",),
    },
    "gradtrail.attribution.curvature": {"blocks": ("model_curvature",)},
    "gradtrail.attribution.features": {"plan": ("FeatureSettings", "plan_features")},
    "gradtrail.attribution.layers": {
        "registry": ("FeaturesLastRule", "GradientShape", "LayerRule", "OuterProductRule", "Projections", "layer_rule"),
    },
    "gradtrail.attribution.methods": {
        "needs": ("Need",),
        "registry": ("Preparation", "attribution_method", "inverse_norms"),
        "rules": ("prepare_queries",),
        "spec": ("MethodSpec",),
    },
    "gradtrail.attribution.scoring": {"passes": ("overall_influence", "score", "score_pass", "shares")},
    "gradtrail.reports.policies": {
        "facts": ("PolicyFacts", "RankedExample"),
        "registry": ("Option", "Rule", "finding", "policy_rule"),
    },
    "gradtrail.storage.sources": {
        "config": ("SourceConfig",),
        "rows": ("Arrival", "FileGone", "FileMark", "Settled", "Source"),
    },
}
_LAZY = """
import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
"""


def sub_rooms() -> list[Path]:
    """Folders of the rooms that hold modules, as paths from the root."""
    folders = (path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).glob("*/__init__.py"))
    return sorted(folders)


def leaving() -> dict[str, dict[str, set[str]]]:
    """For each sub-room, by module, the names that other places import; "" stands for modules imported whole."""
    rooms = {f"gradtrail.{'.'.join(folder.parts)}": folder for folder in sub_rooms()}
    found: dict[str, dict[str, set[str]]] = {room: defaultdict(set) for room in rooms}
    for room, modules in PUBLIC.items():
        for module, names in modules.items():
            found[room][module].update(names)
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    for name in listed.stdout.splitlines():
        path = Path(name)
        if path.parts[0] not in READERS or not (ROOT / path).is_file():
            continue
        own = f"gradtrail.{'.'.join(path.parts[:-1])}"
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module is None or node.level:
                continue
            room, _, module = node.module.rpartition(".")
            names = {alias.name for alias in node.names}
            if room in rooms and room != own:
                found[room][module] |= names
            elif node.module in rooms and node.module != own:
                modules_named = {each for each in names if (ROOT / rooms[node.module] / f"{each}.py").is_file()}
                found[node.module][""] |= modules_named
    return found


def defined(room: str, modules: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same names by the module of the sub-room that defines them, where another one passes them on."""
    folder = ROOT.joinpath(*room.split(".")[1:])
    homes: dict[str, set[str]] = defaultdict(set)
    for module, names in modules.items():
        passed_on = {}
        if module:
            for node in ast.parse((folder / f"{module}.py").read_text("utf-8")).body:
                if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[0] == room:
                    passed_on.update({alias.name: str(node.module).rpartition(".")[2] for alias in node.names})
        for name in names:
            homes[passed_on.get(name, module)].add(name)
    return homes


def stub(modules: dict[str, set[str]]) -> str:
    """The text of one `__init__.pyi`.

    Raises:
        SystemExit: where a name is that of its module: whoever imported the module first would get that instead.
    """
    lines = []
    for module in sorted(modules):
        if module in modules[module]:
            sys.exit(f"{module}.{module} leaves its sub-room under the name of its module: rename one of the two")
        lines += [f"from .{module} import {name} as {name}\n" for name in sorted(modules[module])]
    return "".join(lines)


def main() -> int:
    """Write every door, or with `--check` return 1 where one is out of date."""
    stale = []
    for room, modules in leaving().items():
        folder = ROOT.joinpath(*room.split(".")[1:])
        wanted = {folder / "__init__.pyi": stub(defined(room, modules))}
        door = (folder / "__init__.py").read_text("utf-8")
        wanted[folder / "__init__.py"] = door if "lazy.attach_stub" in door else door + _LAZY
        for path, text in wanted.items():
            if not path.is_file() or path.read_text("utf-8") != text:
                stale.append(path.relative_to(ROOT).as_posix())
                if "--check" not in sys.argv:
                    path.write_text(text, "utf-8")
    if stale and "--check" in sys.argv:
        print(f"Out of date: {', '.join(stale)}. Run python scripts/doors.py and commit what it writes.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
