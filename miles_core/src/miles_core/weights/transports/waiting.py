"""Waiting for copies to finish before their source is reused."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def finish_copies(device: torch.device | str) -> None:
    """Return when everything queued on the current stream of ``device`` is done. Copies between CPU tensors are done already."""
    from miles_core.accelerator.device import accelerator_of

    accelerator_of(device).finish(device)
