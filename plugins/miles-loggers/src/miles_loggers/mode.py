"""Whether Weights & Biases is used, and how. Standard library and miles_core only."""

from __future__ import annotations

import os

from miles_loggers.options import WandbOptions


def wandb_mode(options: WandbOptions) -> str:
    """``online``, ``offline`` or ``disabled``: the option, else ``WANDB_MODE``, else online."""
    mode = options.wandb_mode or os.environ.get("WANDB_MODE", "").lower()
    if mode == "disabled":
        return "disabled"
    return "offline" if mode in ("offline", "dryrun") else "online"
