"""The four ways to import gradtrail: wheel, sdist, editable install, bare checkout."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.ci  # environments are made and installed into

CHECKOUT = Path(__file__).resolve().parents[2]
ROOMS = ("attribution", "flows", "lineage", "reports", "storage", "tasks")
IMPORT_ALL = (
    "import json, sys, gradtrail; "
    + "".join(f"import gradtrail.{room}; " for room in ROOMS)
    + "import gradtrail.flows.audit, gradtrail.cli, gradtrail.demo.run; "
    "print(json.dumps({'where': gradtrail.tasks.__file__, 'doubles': sorted({'flows', 'tasks'} & set(sys.modules))}))"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout's own files, in which installs may leave what they make."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (CHECKOUT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to((CHECKOUT / name).readlink())
        elif (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    return source


@pytest.fixture(scope="module")
def distributions(source, tmp_path_factory):
    built = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(built.glob("*.whl")), next(built.glob("*.tar.gz"))


def _environment_with_site_packages(folder: Path) -> Path:
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    paths = folder / "lib" / version / "site-packages" / "existing.pth"
    paths.write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def _run(python: Path, code: str, cwd: Path) -> dict:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=cwd, env=clean, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_wheel_installs_without_dependencies_and_runs_from_another_folder(distributions, tmp_path):
    wheel, _ = distributions
    python = _environment_with_site_packages(tmp_path / "environment")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)],
        check=True,
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    answer = _run(python, IMPORT_ALL, elsewhere)
    assert answer["where"].startswith(str(tmp_path / "environment"))
    assert answer["doubles"] == []
    command = tmp_path / "environment" / "bin" / "gradtrail"
    version = subprocess.run([command, "--version"], capture_output=True, text=True, cwd=elsewhere, check=True)
    assert version.stdout.startswith("gradtrail 0.")


def test_distributions_hold_every_room_with_its_sql_and_templates(distributions):
    wheel, sdist = distributions
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    for room in ROOMS:
        for file in (CHECKOUT / room).rglob("*"):
            if file.suffix in {".py", ".sql", ".html", ".css", ".toml"} and "__pycache__" not in file.parts:
                assert f"gradtrail/{file.relative_to(CHECKOUT).as_posix()}" in in_wheel
    assert "gradtrail/py.typed" in in_wheel
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "gradtrail/flows/audit.py", "gradtrail/cli.py"} <= in_sdist


def test_sdist_unpacked_works_as_a_checkout(distributions, tmp_path):
    _, sdist = distributions
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    root = next(tmp_path.glob("gradtrail-*"))
    answer = _run(Path(sys.executable), f"import sys; sys.path.insert(0, {str(root)!r}); " + IMPORT_ALL, tmp_path)
    assert answer["where"].startswith(str(root))


def test_bare_checkout_imports_rooms_under_one_name_only(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); " + IMPORT_ALL
    answer = _run(Path(sys.executable), code, tmp_path)
    assert answer["where"] == str(CHECKOUT / "gradtrail" / "tasks" / "__init__.py")
    assert answer["doubles"] == []


@pytest.fixture(scope="module")
def editable(source, tmp_path_factory):
    """A Python that has nothing but an editable install of the copy."""
    folder = tmp_path_factory.mktemp("editable")
    python = _environment_with_site_packages(folder)
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(source)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    [existing] = folder.rglob("existing.pth")
    existing.unlink()
    return python


def test_an_editable_install_is_a_path_and_no_import_hook(source, editable):
    [paths] = editable.parents[1].rglob("*.pth")
    assert paths.read_text().split() == [str(source)]
    assert list(paths.parent.glob("*finder*")) == []


@pytest.mark.parametrize("place", ["checkout", "editable install"])
@pytest.mark.parametrize("tool", ["mypy", "basedpyright"])
def test_type_checkers_resolve_the_rooms(tool, place, source, editable, tmp_path):
    folder = source if place == "checkout" else tmp_path
    file = folder / "user_of_gradtrail.py"
    file.write_text("from gradtrail.storage.files.atomic import write_atomically\n\nreveal_type(write_atomically)\n")
    command = {
        ("mypy", "checkout"): ["--no-site-packages"],
        ("mypy", "editable install"): ["--python-executable", editable],
        ("basedpyright", "checkout"): [],
        ("basedpyright", "editable install"): ["--pythonpath", editable],
    }[tool, place]
    if tool == "mypy":
        command += ["--follow-imports=silent", f"--cache-dir={os.devnull}"]
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "MYPYPATH"}}
    result = subprocess.run(
        [Path(sys.executable).with_name(tool), *command, file.name],
        capture_output=True, text=True, cwd=folder, env=clean, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\(destination: (pathlib\.)?Path, content: bytes\)", result.stdout), result.stdout


def test_importing_gradtrail_loads_nothing_heavy(tmp_path):
    code = (
        "import json, sys, gradtrail; "
        "print(json.dumps(sorted({'torch', 'mlflow', 'prefect', 'lancedb', 'duckdb', 'pandas'} & set(sys.modules))))"
    )
    assert _run(Path(sys.executable), code, tmp_path) == []


def test_the_command_line_starts_without_heavy_libraries():
    heavy = {"prefect", "mlflow", "torch", "lancedb", "duckdb", "pyarrow", "sklearn"}
    code = "import sys, gradtrail.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)
