"""How large rooms and files are, at an older commit and now: benchmarks/results/house.json."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter
from pathlib import PurePosixPath
from statistics import median
from typing import Any

from machine import RESULTS, ROOT

ROOMS = ("attribution", "tasks", "lineage", "storage", "reports", "flows", "gradtrail")


def rooms(commit: str) -> list[dict[str, Any]]:
    """Per room: its modules, how many the fullest folder has, and the median of their lines."""
    listed = _git("ls-tree", "-r", "--name-only", commit).splitlines()
    found = []
    for room in ROOMS:
        paths = [PurePosixPath(each) for each in listed if each.startswith(f"{room}/") and each.endswith(".py")]
        modules = [path for path in paths if path.name != "__init__.py"]
        lines = [_git("show", f"{commit}:{path}").count("\n") for path in modules]
        fullest, count = Counter(path.parent for path in modules).most_common(1)[0]
        found.append(
            {
                "room": room,
                "modules": len(modules),
                "fullest_folder": str(fullest),
                "modules_there": count,
                "median_lines": median(lines),
            }
        )
    return found


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S603


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default="f0bbf55")
    options = parser.parse_args()
    found = {"before": options.before, "rooms_before": rooms(options.before), "rooms_now": rooms("HEAD")}
    path = RESULTS / "house.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**kept, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
