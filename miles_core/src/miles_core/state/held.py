"""Files of a run state that are written at once, or held in host memory until a thread writes them beside the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.state.files import sync_file

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class HeldState:
    """A state that is in host memory and not on disk; what is trained meanwhile does not change it.

    Attributes:
        write: called once on every rank, in any thread: writes this rank's files, has them on disk, and frees their memory. No
            collective. What it returns goes to ``complete``, between processes.
        complete: called on rank 0 with what the ranks' ``write`` returned, in their order, when all of them have ended.
    """

    write: Callable[[], Any]
    complete: Callable[[Sequence[Any]], None] = lambda parts: None


class StateFiles:
    """Where a backend's files go.

    Args:
        hold: keep what is given in host memory, copied, until :meth:`write`; without it every file is written when it is given.
    """

    def __init__(self, *, hold: bool = False) -> None:
        self._hold = hold
        self._held: list[tuple[Path, Callable[[], object]]] = []

    def tensors(self, path: Path, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """A safetensors file."""
        from safetensors.torch import save_file

        whole = {name: host_copy(tensor) if self._hold else tensor.cpu().contiguous() for name, tensor in named}
        self._put(path, lambda: save_file(whole, path, {"format": "pt"}))

    def pickle(self, path: Path, value: Any) -> None:
        """A file of ``torch.save``; the value must not change later."""
        import torch

        self._put(path, lambda: torch.save(value, path))

    def text(self, path: Path, content: str) -> None:
        """A text file."""
        self._put(path, lambda: path.write_text(content, encoding="utf-8"))

    def write(self) -> None:
        """Write what is held, have it on disk, and free it file by file."""
        while self._held:
            path, write = self._held.pop(0)
            write()
            sync_file(path)

    def _put(self, path: Path, write: Callable[[], object]) -> None:
        if self._hold:
            self._held.append((path, write))
        else:
            write()


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy in host memory that shares nothing with ``tensor``, wherever that is."""
    import torch

    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return copy.copy_(tensor.detach())
