"""Named copies of the actor's weights, which take its place in the model for a pass."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from miles_core.accelerator.device import accelerator_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Copies:
    """Copies of a model's parameters and buffers, in host memory, pinned for accelerators, or on the device.

    There is one model on the device. For a pass with a copy, its weights are written over the actor's, which wait meanwhile where
    the copies are.

    Args:
        chunks: the parts of the model.
        on_device: keep copies where the model is.
    """

    def __init__(self, chunks: Sequence[torch.nn.Module], *, on_device: bool) -> None:
        self._chunks = list(chunks)
        self._on_device = on_device
        self._held: dict[str, list[torch.Tensor]] = {}
        self._aside: list[torch.Tensor] | None = None

    @property
    def names(self) -> set[str]:
        """Of the copies."""
        return set(self._held)

    def keep(self, name: str) -> None:
        """Make or overwrite a copy of what the model holds now."""
        self._held[name] = self._taken(self._held.get(name))

    def restore(self, name: str) -> None:
        """Write a copy into the model for good."""
        self._put(self._held[name])

    @contextlib.contextmanager
    def in_place(self, name: str) -> Iterator[None]:
        """The model with a copy's weights; the actor's come back at the end."""
        self._aside = self._taken(self._aside)
        self._put(self._held[name])
        try:
            yield
        finally:
            self._put(self._aside)

    def tensors(self, name: str) -> list[torch.Tensor]:
        """A copy's own tensors, in the order of the model's."""
        return self._held[name]

    def overwrite(self, source: str, target: str) -> None:
        """Make one copy equal to another."""
        for old, new in zip(self._held[target], self._held[source], strict=True):
            old.copy_(new)

    def _model(self) -> list[torch.Tensor]:
        found = [tensor.data for chunk in self._chunks for tensor in chunk.parameters()]
        return found + [buffer.data for chunk in self._chunks for buffer in chunk.buffers()]

    def _taken(self, place: list[torch.Tensor] | None) -> list[torch.Tensor]:
        model = self._model()
        if place is None:
            place = [self._like(tensor) for tensor in model]
        for old, new in zip(place, model, strict=True):
            old.copy_(new, non_blocking=True)
        self._wait(model)
        return place

    def _put(self, tensors: list[torch.Tensor]) -> None:
        model = self._model()
        for old, new in zip(model, tensors, strict=True):
            old.copy_(new, non_blocking=True)
        self._wait(model)

    def _like(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._on_device:
            return torch.empty_like(tensor)
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")

    @staticmethod
    def _wait(tensors: list[torch.Tensor]) -> None:
        for kind in {tensor.device.type for tensor in tensors}:
            accelerator_of(kind).synchronise()
