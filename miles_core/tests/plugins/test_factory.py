"""Making work objects, and refusing to."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from miles_core.errors import MilesError, PluginError
from miles_core.options import Config
from miles_core.plugins import PluginHost, create


@pytest.fixture
def ref(on_path):
    return PluginHost().load("loss", "acme").ref


def test_create_calls_the_factory_with_the_config(ref):
    assert create(pickle.loads(pickle.dumps(ref)), Config.of()) == ("made", 0.5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("late", "cannot be resolved: ModuleNotFoundError: No module named 'acme_good.nowhere'"),
        ("crash", "fails: ZeroDivisionError: in the factory (acme_good/work.py:"),
        ("text", "cannot be called: it is str"),
    ],
)
def test_m109_factory(on_path, name, text):
    ref = PluginHost().load("reward", f"acme-good:{name}").ref
    with pytest.raises(PluginError) as caught:
        create(ref, Config.of())
    assert caught.value.code == "M109"
    assert text in caught.value.line()
    assert "acme-good 1.0" in caught.value.line()


def test_an_error_of_the_factory_that_users_can_act_on_stays_itself(ref, monkeypatch):
    import acme_good.work

    def make(config):
        raise MilesError("M401", "no room")

    monkeypatch.setattr(acme_good.work, "make", make)
    with pytest.raises(MilesError, match="M401 no room"):
        create(ref, Config.of())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": "0.9"}, "this process has acme-good 1.0 in"),
        ({"distribution": "acme-elsewhere"}, "this process has none of it"),
    ],
)
def test_m110_identity_is_checked_before_import(ref, change, text):
    other = dataclasses.replace(ref, create="surely_not_there:x", **change)
    with pytest.raises(PluginError) as caught:
        create(other, Config.of())
    assert caught.value.code == "M110"
    assert text in caught.value.line()


def test_a_recipe_has_no_factory(on_path):
    with pytest.raises(PluginError, match="M109 "):
        create(PluginHost().load("algo", "acme").ref, Config.of())
