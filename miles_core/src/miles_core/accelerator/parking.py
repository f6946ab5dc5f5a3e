"""Moving tensors out of the accelerator's memory and back, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from miles_core.accelerator.device import accelerator_of

if TYPE_CHECKING:
    from collections.abc import Iterable


class Parking:
    """Host copies of tensors whose own memory is given up meanwhile.

    The tensors stay the objects they are, and so do all views of them: their storage shrinks to nothing and comes back.
    Host memory is pinned for accelerators, and kept for the next time.
    """

    def __init__(self) -> None:
        self._parked: list[int] = []
        self._places: dict[int, tuple[torch.UntypedStorage, torch.Tensor]] = {}

    def out(self, tensors: Iterable[torch.Tensor], *, unchanged: bool = False) -> int:
        """Copy the tensors' storages to host memory and free them.

        Args:
            tensors: what to park; views of one storage count once.
            unchanged: nobody wrote to them since they came back, so that the host copies still hold.

        Returns:
            bytes freed.
        """
        assert not self._parked, "parked already"
        storages = {s._cdata: s for s in (t.untyped_storage() for t in tensors) if s.nbytes()}
        for key, storage in storages.items():
            place = self._places.get(key)
            if place is None or place[1].numel() != storage.nbytes():
                pinned = storage.device.type == "cuda"
                place = self._places[key] = storage, torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=pinned)
            elif unchanged:
                continue
            place[1].copy_(_bytes(storage), non_blocking=True)
        self._places = {key: self._places[key] for key in storages}
        self._wait()
        for storage in storages.values():
            storage.resize_(0)
        self._parked = list(storages)
        return sum(self._places[key][1].numel() for key in self._parked)

    def back(self) -> None:
        """Bring everything back to where it was."""
        for key in self._parked:
            storage, host = self._places[key]
            storage.resize_(host.numel())
            _bytes(storage).copy_(host, non_blocking=True)
        self._wait()
        self._parked = []

    def _wait(self) -> None:
        for kind in {storage.device.type for storage, _ in self._places.values()}:
            accelerator_of(kind).synchronise()


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # type: ignore[call-overload,no-any-return]
