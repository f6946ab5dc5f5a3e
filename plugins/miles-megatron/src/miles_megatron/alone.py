"""Gradients of a run of one rank, which nobody adds others to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from megatron.core.distributed import DistributedDataParallel

if TYPE_CHECKING:
    from collections.abc import Callable


class Alone(DistributedDataParallel):  # type: ignore[misc]
    """Leaves a step's only gradients as the backward pass gives them; those of several micro-batches add up in fp32.

    megatron-core adds all gradients to zeroed fp32 buffers, which ranks then sum up. One rank can do without: that is three passes
    over memory less, and the buffers take none before there are several micro-batches.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._only: dict[torch.nn.Parameter, torch.Tensor] = {}
        self._summed: set[torch.nn.Parameter] = set()

    def gradient(self, param: torch.nn.Parameter) -> torch.Tensor:
        """What the step's micro-batches found for a trained parameter: in its precision, or in fp32 if there were several."""
        only = self._only.get(param)
        if only is not None:
            return only
        return param.main_grad if param in self._summed else torch.zeros_like(param)  # type: ignore[no-any-return,attr-defined]

    def zero_grad_buffer(self) -> None:
        """Forget the gradients."""
        self._only.clear()
        self._summed.clear()

    def _make_backward_post_hook(self, param: torch.nn.Parameter) -> Callable[..., None]:
        @torch.no_grad()
        def hook(*_: Any) -> None:
            gradient, param.grad = param.grad, None
            if gradient is None:
                return
            total: torch.Tensor = param.main_grad  # type: ignore[attr-defined]
            if param in self._summed:
                total.add_(gradient)
            elif param in self._only:
                if not total.untyped_storage().nbytes():
                    _allocate(self)
                total.copy_(self._only.pop(param))
                total.add_(gradient)
                self._summed.add(param)
            else:
                self._only[param] = gradient

        return hook


def release_gradients(chunk: DistributedDataParallel) -> None:
    """Forget the gradients, and free the memory that they are added up in."""
    chunk.zero_grad_buffer()
    for buffer in _buffers(chunk):
        buffer.untyped_storage().resize_(0)


def restore_gradients(chunk: DistributedDataParallel) -> None:
    """Undo :func:`release_gradients`, with zeros; a rank alone takes the memory when it needs it."""
    if not isinstance(chunk, Alone):
        _allocate(chunk)
        for buffer in _buffers(chunk):
            buffer.zero_()


def _allocate(chunk: DistributedDataParallel) -> None:
    for buffer in _buffers(chunk):
        buffer.untyped_storage().resize_(buffer.numel() * buffer.element_size())


def _buffers(chunk: DistributedDataParallel) -> list[torch.Tensor]:
    return [buffer.grad_data for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)]
