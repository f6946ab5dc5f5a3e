"""The public names of ``miles_core.plugins``, and how little importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import miles_core.plugins as package


def test_public_names_are_sorted_and_resolve():
    assert package.__all__ == sorted(package.__all__, key=lambda name: (not name.isupper(), name.lower() == name, name))
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import miles_core.plugins", "pluggy importlib_metadata stevedore difflib click"),
        ("from miles_core.plugins import PluginIndex; PluginIndex.scan()", "pluggy stevedore torch"),
        ("from miles_core.plugins import PluginHost; PluginHost()", "stevedore torch ray transformers numpy"),
        ("from miles_core.plugins import create, events, hookimpl", "stevedore torch ray transformers numpy"),
    ],
)
def test_imports_stay_light(code, absent):
    check = f"{code}\nimport sys\nassert not [m for m in {absent.split()} if m in sys.modules]"
    subprocess.run([sys.executable, "-P", "-c", check], check=True, timeout=60)
