"""Options of discounted returns."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class DiscountOptions:
    """Returns"""

    gamma: float = option(1.0, flag="--gamma", help="Discount of later tokens' rewards, 0 to 1.")


@dataclass(frozen=True)
class GaeOptions:
    """Generalised advantage estimation"""

    lambd: float = option(1.0, flag="--lambd", help="Weight of later temporal differences, 0 to 1; 1 takes whole returns.")
