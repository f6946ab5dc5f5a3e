"""Reading the weights of an HF directory: which tensors there are, and any slice of one without the rest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from miles_core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

OWNER = "miles-core"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint: its file, shape and dtype."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class HfWeights:
    """The safetensors files of an HF directory, one or sharded by an index.

    Every rank opens the files and reads only its own rows of each tensor. That takes neither communication nor memory
    beyond the shard, reads every byte once over all ranks, and works alike for any number of ranks; the directory must be
    readable on every node, as it must be for the engines anyway.

    Raises:
        UsageError: there are no safetensors files, or one cannot be read (M340).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[Path, Any] = {}
        self.tensors: dict[str, StoredTensor] = {}
        for file in self._files():
            for name, (shape, dtype) in _header(file).items():
                self.tensors[name] = StoredTensor(file, shape, dtype)

    def _files(self) -> Iterable[Path]:
        index = self.directory / "model.safetensors.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as cause:
                raise UsageError(
                    "M340", f"cannot read {index}", owner=OWNER, why=str(cause), fix="get the checkpoint again"
                ) from cause
            return [self.directory / name for name in names]
        single = self.directory / "model.safetensors"
        if single.is_file():
            return [single]
        raise UsageError(
            "M340",
            f"no weights in {self.directory}",
            owner=OWNER,
            why="neither model.safetensors nor model.safetensors.index.json is there",
            fix="give an HF directory with safetensors weights",
        )

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """A tensor, or rows ``[start, stop)`` of its first dimension, as stored, on the CPU."""
        stored, handle = self.tensors[name], self._handle(name)
        if rows is None or not stored.shape:
            return handle.get_tensor(name)  # type: ignore[no-any-return]
        if rows[0] >= rows[1]:
            return torch.empty((0, *stored.shape[1:]), dtype=stored.dtype)
        return handle.get_slice(name)[rows[0] : rows[1]]  # type: ignore[no-any-return]

    def _handle(self, name: str) -> Any:
        file = self.tensors[name].file
        if file not in self._open:
            self._open[file] = safe_open(str(file), framework="pt")
        return self._open[file]

    def read_columns(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Columns ``[start, stop)`` of a matrix, as stored, on the CPU."""
        return self._handle(name).get_slice(name)[:, start:stop]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Unmap the files."""
        self._open.clear()


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    try:
        with safe_open(str(file), framework="pt") as handle:
            found = {}
            for name in handle.keys():  # noqa: SIM118 - safe_open has no iterator
                part = handle.get_slice(name)
                found[name] = (tuple(part.get_shape()), _DTYPES[part.get_dtype()])
            return found
    except KeyError as cause:
        raise UsageError(
            "M340",
            f"{file} has tensors of dtype {cause}",
            owner=OWNER,
            why="it cannot be trained on",
            fix="dequantise the checkpoint",
        ) from cause
    except (OSError, SafetensorError) as cause:
        raise UsageError("M340", f"cannot read {file}", owner=OWNER, why=str(cause), fix="get the checkpoint again") from cause
