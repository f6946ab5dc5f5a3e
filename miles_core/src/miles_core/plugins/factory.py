"""Tier 2: making the object that a reference stands for, in the process that needs it."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from miles_core.errors import MilesError, PluginError
from miles_core.options import Config
from miles_core.plugins import metadata
from miles_core.plugins.causes import describe
from miles_core.plugins.refs import PluginRef


def create(ref: PluginRef, config: Config) -> Any:
    """Import the factory of ``ref`` here and call it with ``config``.

    Returns:
        The work object of the kind: a :class:`~miles_core.protocols.Reward` for ``reward``, and so on; for ``commands`` the
        click command itself.

    Raises:
        PluginError: M110, this process has another version of the distribution, or none; M109, the factory cannot be resolved or
            fails; M111, a dotted path cannot be used here.
        MilesError: whatever error of its own the factory raises.
    """
    if ref.adapter is not None:
        from miles_core.plugins.adhoc import adapt

        return adapt(ref, config)
    verify(ref)
    factory = resolve(ref)
    if ref.kind == "commands":
        return factory
    try:
        return factory(config)
    except MilesError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(ref, "fails", describe(error)) from error


def verify(ref: PluginRef) -> None:
    """Check that this process has the distribution and version that the run was resolved with.

    Raises:
        PluginError: M110.
    """
    found = metadata.installed(ref.distribution)
    if found is None or found.version != ref.version:
        have = (
            f"this process has {found.distribution} {found.version} in {found.location}" if found else "this process has none of it"
        )
        what = f"the {ref.kind} plugin {ref.name!r} is not the one that the run was resolved with"
        fix = f"pip install {ref.distribution}=={ref.version} in this process's environment, and start again"
        raise PluginError("M110", what, owner=f"{ref.distribution} {ref.version}", why=have, fix=fix, kind=ref.kind, name=ref.name)


def resolve(ref: PluginRef) -> Any:
    """The factory itself.

    Raises:
        PluginError: M109.
    """
    module, _, attribute = ref.create.partition(":")
    if not module or not attribute:
        raise _failed(ref, "cannot be resolved", f"its record has no 'package.module:attribute' but {ref.create!r}")
    try:
        factory = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _failed(ref, "cannot be resolved", describe(error)) from error
    if not callable(factory):
        raise _failed(ref, "cannot be called", f"it is {type(factory).__name__}")
    return factory


def _failed(ref: PluginRef, what: str, why: str) -> PluginError:
    fix = f"install what {ref.distribution} needs (pip install --upgrade {ref.distribution}), or choose another {ref.kind} plugin"
    owner = f"{ref.distribution} {ref.version}"
    what = f"the factory {ref.create} of the {ref.kind} plugin {ref.name!r} {what}"
    return PluginError("M109", what, owner=owner, why=why, fix=fix, kind=ref.kind, name=ref.name)
