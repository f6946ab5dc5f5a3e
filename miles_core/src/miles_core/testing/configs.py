"""Configs for tests of losses, estimators and the like."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from miles_core.options import Config


def config_of(groups: Iterable[type], **values: Any) -> Config:
    """A config of these option dataclasses with defaults, but for the fields that ``values`` name.

    Raises:
        TypeError: no group has a field of that name.
    """
    chosen = []
    left = dict(values)
    for group in groups:
        names = [field.name for field in dataclasses.fields(group) if field.name in left]
        chosen.append(group(**{name: left.pop(name) for name in names}))
    if left:
        raise TypeError(f"no option group has the fields {sorted(left)}")
    return Config.of(*chosen)
