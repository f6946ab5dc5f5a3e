"""Bodies of SGLang's ``/update_weights_from_tensor``: pickles whose tensors are handles of a trainer's GPU memory.

The engine process passes handles on and opens none, so it needs no GPU. SGLang admits only classes of torch, the standard library
and its own to these pickles; everything here is of the first two.
"""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from miles_core.protocols.engine import TensorEntry, WeightBucket

DEVICE = 6
"""Position of the device among the arguments of torch's ``rebuild_cuda_tensor``; SGLang takes a GPU's UUID there."""


class CudaTensor:
    """Unpickles as the tensor that a CUDA IPC handle stands for."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        self.arguments = tuple(arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        return rebuild_cuda_tensor, self.arguments


def describe(entries: Sequence[TensorEntry]) -> str:
    """Names, dtypes, shapes and places of a bucket's tensors, as :func:`miles_sglang.inside.load` reads them."""
    return json.dumps([[e.name, e.dtype, list(e.shape), e.offset, e.nbytes] for e in entries], separators=(",", ":"))


def cuda_ipc(bucket: WeightBucket) -> list[str]:
    """One text per tensor-parallel rank: each opens the copy on its own GPU."""
    ranks = bucket.handle.get("ranks")
    handles: Sequence[Mapping[str, Any]] = ranks if isinstance(ranks, (list, tuple)) else [bucket.handle]
    return [encode([(describe(bucket.entries), CudaTensor(_arguments(handle)))]) for handle in handles]


def _arguments(handle: Mapping[str, Any]) -> list[Any]:
    # Written by the trainer of this run, and brought by Ray: no stranger's pickle.
    arguments = list(pickle.loads(handle["tensor"]))
    arguments[DEVICE] = str(handle["device"])
    return arguments


def encode(content: Any) -> str:
    """A pickle in base64."""
    return base64.b64encode(pickle.dumps(content)).decode()
