"""Master weights of a model that one rank has for itself: fp32, beside the parameters in the precision of the computation.

Where ranks share the weights out, FSDP makes these copies layer by layer from the shards, for each pass. One rank makes them once a
step: nothing is gathered, and no buffer is copied through on the way to a collective that has nobody to talk to.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


class Masters:
    """Those of the parameters that are computed with in less than fp32; empty for a model without such parameters."""

    def __init__(self) -> None:
        self._pairs: dict[str, tuple[torch.Tensor, nn.Parameter]] = {}
        self.sums = True
        """Whether gradients go to the masters, where those of several micro-batches add up; else they stay the parameters'."""

    def of(self, name: str, param: torch.Tensor) -> torch.Tensor:
        """The master of a parameter, or itself if it has none."""
        pair = self._pairs.get(name)
        return param if pair is None else pair[0]

    def add(self, name: str, master: torch.Tensor, param: nn.Parameter) -> None:
        """Take on a parameter, whose gradients then go to its master, summed in the master's precision."""
        self._pairs[name] = master, param
        if param.requires_grad:
            # A parameter that held what holds the parameters would never be freed: Python cannot see through its hooks.
            hook = functools.partial(_hand_over, weakref.ref(self), master)
            param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def gradient(self, name: str, weight: torch.Tensor) -> torch.Tensor | None:
        """What training found for a weight: in the master's precision, or in the parameter's where it stayed there."""
        pair = self._pairs.get(name)
        return weight.grad if weight.grad is not None or pair is None else pair[1].grad

    def parameter(self, name: str) -> torch.Tensor | None:
        """The parameter that a master is rounded to; None for a weight without a master."""
        pair = self._pairs.get(name)
        return None if pair is None else pair[1].detach()

    def forget_gradients(self) -> None:
        """Drop those that stayed the parameters'."""
        for _, param in self._pairs.values():
            param.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters' values, which have changed, to the parameters."""
        if self._pairs:
            masters, params = zip(*self._pairs.values(), strict=True)
            torch._foreach_copy_(params, masters)

    def release(self) -> None:
        """Free the parameters' memory; the masters' stays."""
        for _, param in self._pairs.values():
            param.untyped_storage().resize_(0)

    def restore(self) -> None:
        """Undo :meth:`release`."""
        for _, param in self._pairs.values():
            param.untyped_storage().resize_(param.numel() * param.element_size())
        self.refresh()


def _hand_over(masters: weakref.ref[Masters], master: torch.Tensor, param: torch.Tensor) -> None:
    owner = masters()
    if owner is None or not owner.sums:
        return
    assert param.grad is not None
    if master.grad is None:
        master.grad = param.grad.to(master.dtype)
    else:
        master.grad.add_(param.grad)
    param.grad = None
