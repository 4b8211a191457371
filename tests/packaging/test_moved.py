"""Imports that version 0.2 documented still work, and say where the module is now."""

import importlib
import sys
import warnings

import pytest

import gradtrail
from gradtrail.moved import MOVED

assert gradtrail.__version__


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_module_that_moved_hands_on_what_is_in_its_new_place(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} is {MOVED[old]} now"):
        module = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    for name in (each for each in vars(new) if not each.startswith("_")):
        assert getattr(module, name) is getattr(new, name)
    with pytest.raises(AttributeError):
        _ = module.nothing


def test_what_documented_pages_imported_from_modules_that_are_rooms_now_is_at_their_doors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from gradtrail.attribution.adapters import Batch
        from gradtrail.attribution.curvature import model_curvature
        from gradtrail.attribution.features import FeatureSettings, plan_features
        from gradtrail.attribution.methods import prepare_queries
        from gradtrail.attribution.scoring import overall_influence, score, score_pass, shares
    named = (Batch, model_curvature, FeatureSettings, plan_features, prepare_queries, overall_influence, score)
    assert all(each.__doc__ for each in (*named, score_pass, shares))


def test_other_names_are_still_missing():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("gradtrail.attribution.nothing_of_the_kind")
