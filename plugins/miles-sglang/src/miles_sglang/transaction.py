"""One replacement of a server's weights: what may come, what has come, and how each transport brings it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from miles_core.errors import RunError
from miles_core.protocols.engine import WeightBucket
from miles_sglang import payload
from miles_sglang.command import LOADER
from miles_sglang.control import Control

OWNER = "miles-sglang"
SHOWN = 3
SECONDS = 600.0
"""Most seconds for one bucket."""
HEAD = "lm_head.weight"
DRAFT = "model.mtp_layers."
"""Of tensors that only a model that drafts has. One that does not come stays what it was."""


class WeightSync:
    """Sends buckets on to a server.

    Args:
        control: of the server.
        names: parameters of the checkpoint; empty when they are not known, and nothing is checked then.
        tied: whether :data:`HEAD` may come or stay away.
    """

    def __init__(self, control: Control, names: frozenset[str], tied: bool) -> None:
        self._control = control
        self._names, self._tied = names, tied
        self.open: int | None = None
        """Version of the open transaction."""
        self._seen: set[str] = set()
        self._group = ""
        self._send: Mapping[str, Callable[[WeightBucket], None]] = {
            "cuda_ipc": self._cuda_ipc,
            "process_group": self._process_group,
            "disk": self._disk,
        }

    @property
    def drafts(self) -> set[str]:
        """Tensors of a model that drafts, which came in the last transaction."""
        return {name for name in self._seen if name.startswith(DRAFT)}

    def begin(self, version: int) -> None:
        """Open a transaction; one that was never committed is given up."""
        self.open, self._seen = version, set()

    def receive(self, bucket: WeightBucket) -> None:
        """Load a bucket into the server.

        Raises:
            RunError: M516, no transaction of this version is open, or a name is not the checkpoint's; M513, M514, the server
                failed; M515, the transport is not one that SGLang takes.
        """
        if self.open != bucket.version:
            is_open = f"version {self.open} is open" if self.open is not None else "no transaction is open"
            raise RunError("M516", f"bucket {bucket.index} of version {bucket.version} was not taken", owner=OWNER, why=is_open)
        names = {entry.name for entry in bucket.entries}
        unknown = sorted(names - self._names - {HEAD}) if self._names else []
        if unknown:
            # Some models of SGLang skip a name that they do not know and others fail: the server is not asked.
            raise _not_whole(bucket.version, f"{len(unknown)} names are not the checkpoint's ({_some(unknown)})")
        send = self._send.get(bucket.transport)
        if send is None:
            what = f"SGLang cannot take weights over {bucket.transport}"
            raise RunError("M515", what, owner=OWNER, fix="run engines on GPUs: they take cuda_ipc, process_group and disk")
        send(bucket)
        self._seen |= names

    def commit(self, version: int) -> None:
        """Close the transaction: the server's answers have the new version from now on.

        Raises:
            RunError: M516, another or no transaction is open, or a parameter did not come; the transaction stays open.
        """
        if self.open != version:
            why = f"version {self.open} is open" if self.open is not None else "no transaction is open"
            raise RunError("M516", f"cannot commit version {version}", owner=OWNER, why=why, fix="begin it first")
        needed = {name for name in self._names if not name.startswith(DRAFT)}
        missing = sorted(needed - self._seen - ({HEAD} if self._tied else set()))
        if missing:
            raise _not_whole(version, f"{len(missing)} are missing ({_some(missing)})")
        # Nothing runs: the server was paused before the transaction began.
        self._control.post("/update_weight_version", {"new_version": str(version), "abort_all_requests": False})
        self.open = None

    def leave(self) -> None:
        """Leave the process group, if there is one."""
        if self._group:
            self._control.post("/destroy_weights_update_group", {"group_name": self._group})
            self._group = ""

    def _cuda_ipc(self, bucket: WeightBucket) -> None:
        self._update("/update_weights_from_tensor", serialized_named_tensors=payload.cuda_ipc(bucket), load_format=LOADER)

    def _process_group(self, bucket: WeightBucket) -> None:
        """The sender broadcasts the tensors one by one, in order, to every rank of the server."""
        handle = dict(bucket.handle)
        name = str(handle["group_name"])
        if name != self._group:
            self.leave()
            keys = ("master_address", "master_port", "rank_offset", "world_size", "group_name", "backend")
            self._control.post("/init_weights_update_group", {key: handle[key] for key in keys}, SECONDS)
            self._group = name
        self._update(
            "/update_weights_from_distributed",
            names=[entry.name for entry in bucket.entries],
            dtypes=[entry.dtype for entry in bucket.entries],
            shapes=[list(entry.shape) for entry in bucket.entries],
            group_name=name,
        )

    def _disk(self, bucket: WeightBucket) -> None:
        """SGLang reads folders: one with nothing but this bucket's file."""
        file = Path(str(bucket.handle["path"])).resolve()
        # Beside the file, where every node of the server sees it.
        with tempfile.TemporaryDirectory(prefix="miles-weights-", dir=file.parent) as folder:
            (Path(folder) / "model.safetensors").symlink_to(file)
            self._update("/update_weights_from_disk", model_path=folder, load_format="safetensors")

    def _update(self, path: str, **document: Any) -> None:
        # The caches were flushed before the transaction, and nothing fills them while the server is paused.
        self._control.post(path, {**document, "flush_cache": False}, SECONDS)


def _not_whole(version: int, why: str) -> RunError:
    fix = "publish every parameter of the checkpoint's architecture, under its names"
    return RunError("M516", f"version {version} is not whole", owner=OWNER, why=why, fix=fix)


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
