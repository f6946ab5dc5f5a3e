"""M108: two owners of one flag."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.config import TrainingOptions
from miles_core.options import option, options_of
from miles_core.plugins import check_flags


@dataclass(frozen=True)
class Mine:
    """Mine"""

    rate: float = option(1.0, flag="--lr", help="Clashes with core.")
    pace: float = option(1.0, aliases=("--pace",), help="Clashes with Yours by its alias.")


@dataclass(frozen=True)
class Yours:
    """Yours"""

    pace: float = option(1.0, flag="--pace", help="Clashes.")


def test_m108_names_both_owners():
    options = [*options_of(TrainingOptions, "core"), *options_of(Mine, "mine"), *options_of(Yours, "yours")]
    errors = check_flags(options, {"mine": "acme 1.0"})
    assert [error.code for error in errors] == ["M108", "M108"]
    assert errors[0].owner == "core (TrainingOptions.lr) and acme 1.0 (Mine.rate)"
    assert errors[1].owner == "acme 1.0 (Mine.pace) and yours (Yours.pace)"


def test_one_dataclass_of_two_plugins_is_no_clash():
    assert check_flags([*options_of(Mine, "one"), *options_of(Yours, "two")][:1] + options_of(Mine, "three")[:1]) == []
