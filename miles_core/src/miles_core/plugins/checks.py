"""What pluggy lets pass, and miles does not: misspelt hooks, arguments that would never be filled, hooks that would never run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pluggy

from miles_core.errors import PluginError
from miles_core.plugins import hookspecs
from miles_core.plugins.index import closest

PREFIX = "miles_"


def specifications() -> dict[str, Callable[..., Any]]:
    """Every hook specification by name."""
    marked = f"{hookspecs.PROJECT}_spec"
    return {name: function for name, function in vars(hookspecs).items() if hasattr(function, marked) and name.startswith(PREFIX)}


def check_hooks(plugin: object, owner: str, manager: pluggy.PluginManager) -> None:
    """Check every hook implementation of a plugin before pluggy registers it.

    Raises:
        PluginError: M106, naming the hook and what is wrong with it.
    """
    specs = specifications()
    for name, function, options in _functions(plugin, manager):
        hook = (options or {}).get("specname") or name
        if options is None:
            if name.startswith(PREFIX) and _defined_in(plugin, function):
                if name in specs:
                    raise _invalid(owner, name, "is not marked as an implementation", "put @hookimpl above it")
                raise _unknown(owner, name, specs)
        elif hook not in specs:
            if not options.get("optionalhook"):
                raise _unknown(owner, hook, specs)
        else:
            _check_call(owner, hook, function, options, specs[hook])


def _functions(plugin: object, manager: pluggy.PluginManager) -> Iterator[tuple[str, Callable[..., Any], Mapping[str, Any] | None]]:
    for name in dir(plugin):
        # Statically, so that no property or module __getattr__ of the plugin runs for the sake of a look.
        found = inspect.getattr_static(plugin, name, None)
        function = getattr(found, "__func__", found)
        if not inspect.isfunction(function):
            continue
        yield name, function, manager.parse_hookimpl_opts(plugin, name)


def _defined_in(plugin: object, function: Callable[..., Any]) -> bool:
    home = plugin.__name__ if inspect.ismodule(plugin) else type(plugin).__module__
    return getattr(function, "__module__", None) == home


def _check_call(owner: str, hook: str, function: Callable[..., Any], options: Mapping[str, Any], spec: Callable[..., Any]) -> None:
    if options.get("wrapper") or options.get("hookwrapper"):
        raise _invalid(owner, hook, "is a wrapper, and hooks of miles take none", "remove wrapper=True")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise _invalid(owner, hook, "is async, and would never be awaited", "make it a plain function")
    known = list(inspect.signature(spec).parameters)
    if known and inspect.isgeneratorfunction(function):
        raise _invalid(owner, hook, "is a generator, and would never run", "remove the yield")
    wanted = f"its signature is {hook}({', '.join(known)})"
    for position, (name, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if position == 0 and name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise _invalid(owner, hook, f"takes {name!r} by keyword only, which would never be filled", wanted)
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise _invalid(owner, hook, f"takes *{name}, which would stay empty", wanted)
        if name not in known:
            raise _invalid(owner, hook, f"takes {name!r}, which the hook does not have", wanted)
        if parameter.default is not parameter.empty:
            raise _invalid(owner, hook, f"gives {name!r} a default, and would always get it", f"remove the default; {wanted}")


def _invalid(owner: str, hook: str, what: str, fix: str) -> PluginError:
    return PluginError("M106", f"the hook {hook} {what}", owner=owner, fix=fix, hook=hook)


def _unknown(owner: str, hook: str, specs: Mapping[str, object]) -> PluginError:
    near = closest(hook, specs)
    fix = f"did you mean {near}?" if near else "hooks are listed in docs/hooks.md; a helper's name must not start with miles_"
    return PluginError("M106", f"there is no hook {hook}", owner=owner, fix=fix, hook=hook)
