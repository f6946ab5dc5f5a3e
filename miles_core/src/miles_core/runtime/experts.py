"""How a mixture of experts is built, by its ``config.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "moe_k", "top_k_experts")


@dataclass(frozen=True)
class Experts:
    """Decoder layers of the model, experts of a layer that has some, and how many of them a token goes to."""

    layers: int
    experts: int
    top_k: int


def read_experts(config: dict[str, Any]) -> Experts | None:
    """The facts in a model's configuration; None when it does not say that it has experts."""
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config

    def first(names: tuple[str, ...]) -> int:
        return next((text[name] for name in names if isinstance(text.get(name), int)), 0)

    found = Experts(first(("num_hidden_layers",)), first(_EXPERTS), first(_TOP_K))
    return found if min(found.layers, found.experts, found.top_k) > 0 else None


def experts_of(checkpoint: Path) -> Experts | None:
    """The facts in a checkpoint's ``config.json``, which validation has found to be readable."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return read_experts(config)
