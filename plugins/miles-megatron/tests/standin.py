"""Lets megatron-bridge be imported where Transformer Engine and Triton are not: for the processes of ``test_bridge.py``.

It imports both for layers that no model here has. What it asks of them are empty modules and classes; whoever has the real ones
gets those. megatron-core must not take the stand-in for the real thing, and so is imported before it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import miles_megatron.backend  # noqa: F401 - it imports what it uses of megatron-core
import torch

ROOTS = ("transformer_engine", "triton")


class _Part(ModuleType):
    """A module that has every submodule and class that it is asked for, and is a decorator that changes nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = type(name, (torch.nn.Module,), {}) if name[0].isupper() else importlib.import_module(f"{self.__name__}.{name}")
        setattr(self, name, found)
        return found

    def __call__(self, *args: Any, **_: Any) -> Any:
        return args[0] if args and callable(args[0]) else lambda function: function


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds these modules, when nobody else does."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname.partition(".")[0] not in ROOTS:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Part(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        del module


def apply() -> None:
    """Once in a process, before megatron-bridge is imported."""
    sys.meta_path.append(_Finder())
