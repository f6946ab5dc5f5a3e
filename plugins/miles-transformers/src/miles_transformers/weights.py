"""The served weights, and the transaction that replaces them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from miles_core.errors import MilesError, RunError
from miles_core.protocols.engine import WeightBucket
from miles_core.weights import digest, open_bucket
from miles_transformers.model import OWNER
from miles_transformers.names import checkpoint_views

SHOWN = 3
"""Names that an error lists."""


class WeightStore:
    """The model's parameters under the names of a checkpoint, written in place.

    A checkpoint may name a tied weight once or twice; a transaction is whole when every parameter came under one of its names.
    Buffers that checkpoints store may come too and need not; tensors that the model's class leaves out of checkpoints are left out.

    Args:
        module: the model.
        device: where its parameters are.
    """

    def __init__(self, module: Any, device: torch.device) -> None:
        self._module, self._device = module, device
        self.open: int | None = None
        """Version of the open transaction."""
        self.defined = True
        """Whether the parameters hold a whole version: not while a transaction is open, nor after :meth:`release`."""
        self.resident = True
        self._seen: set[str] = set()
        self._unknown: list[str] = []
        self._left_out: list[str] = []
        self._shapes: dict[Any, torch.Size] = {}
        self._views = checkpoint_views(module)
        patterns = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
        self._ignored = [re.compile(pattern) for pattern in patterns]

    def begin(self, version: int) -> None:
        """Open a transaction; one that was open and never committed is given up.

        Raises:
            MilesError: ``M457``, the memory of the weights is released.
        """
        if not self.resident:
            fix = "call resume_memory(['weights']) first"
            raise MilesError("M457", f"cannot take version {version}: the weights' memory is released", owner=OWNER, fix=fix)
        self.open, self.defined = version, False
        self._seen, self._unknown, self._left_out = set(), [], []

    def receive(self, bucket: WeightBucket) -> None:
        """Copy a bucket into the parameters. Names that the model lacks are reported at :meth:`commit`.

        Raises:
            RunError: ``M457``, no transaction of this version is open; ``M458``, a shape or dtype does not fit.
        """
        if self.open != bucket.version:
            is_open = f"version {self.open} is open" if self.open is not None else "no transaction is open"
            raise RunError("M457", f"bucket {bucket.index} of version {bucket.version} was not taken", owner=OWNER, why=is_open)
        with torch.no_grad(), open_bucket(bucket, self._device) as tensors:
            for name, tensor in tensors:
                target = self._views.get(name)
                if target is None:
                    known = any(pattern.search(name) for pattern in self._ignored)
                    (self._left_out if known else self._unknown).append(name)
                    continue
                if target.shape != tensor.shape:
                    raise _misfit(name, f"its shape is {list(tensor.shape)}, the engine's {list(target.shape)}")
                if target.dtype != tensor.dtype and not (target.is_floating_point() and tensor.is_floating_point()):
                    raise _misfit(name, f"its dtype is {tensor.dtype}, the engine's {target.dtype}")
                target.copy_(tensor)
                self._seen.add(name)

    def commit(self, version: int) -> None:
        """Close the transaction.

        Raises:
            RunError: ``M457``, another or no transaction is open; ``M459``, a parameter is missing or a name unknown. The
                transaction stays open, so that nothing is served.
        """
        if self.open != version:
            why = f"version {self.open} is open" if self.open is not None else "no transaction is open"
            raise RunError("M457", f"cannot commit version {version}", owner=OWNER, why=why, fix="begin it first")
        storages = {_place(self._views[name]) for name in self._seen}
        buffers = {_place(b) for b in self._module.buffers()}
        missing = [n for n, v in self._views.items() if _place(v) not in storages and _place(v) not in buffers]
        if missing or self._unknown:
            parts = [f"{len(missing)} are missing ({_some(missing)})"] if missing else []
            parts += [f"{len(self._unknown)} are unknown to the model ({_some(self._unknown)})"] if self._unknown else []
            fix = "publish every parameter of the checkpoint's architecture, under its names"
            raise RunError(
                "M459",
                f"version {version} is not whole",
                owner=OWNER,
                why=", ".join(parts),
                fix=fix,
                missing=tuple(missing),
                unknown=tuple(self._unknown),
            )
        self.open, self.defined = None, True

    def digests(self) -> dict[str, str]:
        """SHA-256 per name; empty for a tensor of the last transaction that was left out."""
        return {name: digest(view) for name, view in self._views.items()} | dict.fromkeys(self._left_out, "")

    def dtypes(self) -> dict[str, str]:
        """The dtype per name."""
        return {name: str(view.dtype).removeprefix("torch.") for name, view in self._views.items()}

    def release(self) -> None:
        """Free the parameters' memory on an accelerator; their content is lost. Buffers stay."""
        if not self.resident or self._device.type == "cpu":
            return
        with torch.inference_mode(False):
            for parameter in self._module.parameters():
                self._shapes[parameter] = parameter.shape
                parameter.data = parameter.data.new_empty(0)
        self._views = {}
        self.resident = self.defined = False

    def restore(self) -> None:
        """Take memory for the parameters again; their content is undefined until a transaction is committed."""
        if self.resident:
            return
        # A tensor made in inference mode could not be written by a transaction, which comes from another thread.
        with torch.inference_mode(False):
            for parameter in self._module.parameters():
                parameter.data = parameter.data.new_empty(self._shapes[parameter])
        self._views = checkpoint_views(self._module)
        self.resident = True


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


def _misfit(name: str, why: str) -> RunError:
    fix = "publish weights of the architecture that the engine has loaded"
    return RunError("M458", f"the weight {name} does not fit", owner=OWNER, why=why, fix=fix, parameter=name)


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
