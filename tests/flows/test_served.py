"""Scheduled runs do what the settings of their host say; a parameter may only narrow it."""

import inspect

import pytest

from gradtrail import served
from gradtrail.errors import UsageError


@pytest.fixture
def host(tmp_path, monkeypatch):
    (tmp_path / "gradtrail.toml").write_text("""home = "here"
allowed_adapters = ["mine:Adapter"]
[[models]]
reference = "m@champion"
[[models]]
reference = "other@champion"
target = "label"
""")
    monkeypatch.setenv("GRADTRAIL_SETTINGS_FILE", str(tmp_path / "gradtrail.toml"))
    monkeypatch.delenv("GRADTRAIL_HOME", raising=False)
    return tmp_path


def test_no_parameter_says_where_things_are_or_what_may_run():
    assert list(inspect.signature(served.watch.fn).parameters) == ["references"]
    assert list(inspect.signature(served.audit.fn).parameters) == ["reference", "target", "method"]


def test_models_that_the_settings_do_not_name_are_refused(host):
    with pytest.raises(UsageError, match="name no model foreign@champion"):
        served.watch.fn(["foreign@champion"])
    for asked in (("foreign@champion",), ("other@champion", "emitted"), ("m@champion", "emitted", "trak")):
        with pytest.raises(UsageError, match=f"name no model {asked[0]} with target"):
            served.audit.fn(*asked)


def test_paths_are_those_of_the_settings_whatever_folder_a_run_starts_in(host, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    settings, workspace = served._of_this_host()
    assert workspace.home == str(host / "here")
    assert workspace.adapter_path == str(host)
    assert [each.reference for each in settings.models] == ["m@champion", "other@champion"]
