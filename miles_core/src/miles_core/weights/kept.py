"""The weights that engines serve, kept in files: an engine that is started again takes them from there."""

from __future__ import annotations

import json
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from miles_core.errors import RunError
from miles_core.protocols.engine import RolloutEngine, TensorEntry, WeightBucket
from miles_core.weights.bucket import Bucket
from miles_core.weights.transports.disk import write_bucket

if TYPE_CHECKING:
    import torch

FOLDER = "served"
"""Below the run folder, which all machines of a run share."""
MANIFEST = "manifest.json"
AHEAD = 2
"""Buckets in host memory that are not written yet."""


class WeightKeeper:
    """Writes the buckets of each version beside its publish, and removes those of the version before.

    A version is whole once its manifest is there, which is written last. What is kept is what engines are sent, after any
    preparation of theirs (quantisation).

    Args:
        folder: where versions go, each in a folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="keep-weights")
        self._writes: deque[Future[None]] = deque()
        self._entries: list[dict[str, object]] = []
        self._version = -1

    def begin(self, version: int) -> None:
        """A publish begins; one of the same version that failed is forgotten.

        Raises:
            RunError: M532, the version before could not be written.
        """
        self._settle(0)
        self._version, self._entries = version, []
        shutil.rmtree(self._folder / str(version), ignore_errors=True)

    def add(self, bucket: Bucket) -> None:
        """Keep a bucket, whose memory is the caller's again when this returns.

        Raises:
            RunError: M532, an earlier one could not be written.
        """
        self._settle(AHEAD - 1)
        host = bucket.flat[: bucket.nbytes].to("cpu", copy=True)
        file = f"{bucket.index}.safetensors"
        entries = [asdict(entry) for entry in bucket.entries]
        self._entries.append({"file": file, "index": bucket.index, "nbytes": bucket.nbytes, "entries": entries})
        self._writes.append(self._writer.submit(self._write, self._folder / str(self._version), file, bucket.entries, host))

    def finish(self) -> None:
        """Every bucket came: the version is whole as soon as it is written, which this does not wait for."""
        self._writes.append(self._writer.submit(self._commit, self._folder / str(self._version), list(self._entries)))

    def close(self) -> None:
        """Remove everything."""
        self._writer.shutdown(cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _settle(self, left: int) -> None:
        """Wait until no more than so many writes are to be done."""
        while len(self._writes) > left:
            try:
                self._writes.popleft().result()
            except OSError as error:
                self._writes.clear()
                raise RunError(
                    "M532",
                    f"cannot keep the weights of version {self._version} in {self._folder}",
                    owner="miles-core",
                    why=error.strerror or str(error),
                    fix="make room there for two copies of the model, or leave --use-fault-tolerance out",
                ) from error

    @staticmethod
    def _write(folder: Path, file: str, entries: tuple[TensorEntry, ...], host: torch.Tensor) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_bucket(folder / file, host, entries)

    def _commit(self, folder: Path, entries: list[dict[str, object]]) -> None:
        partial = folder / f"{MANIFEST}.partial"
        partial.write_text(json.dumps(entries), encoding="utf-8")
        partial.replace(folder / MANIFEST)
        for other in self._folder.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)


def serve_kept(engine: RolloutEngine, folder: Path, version: int) -> None:
    """Have an engine that has just started serve a version that was kept."""
    engine.pause("abort")
    engine.flush()
    engine.begin_weights(version)
    for bucket in kept_buckets(folder, version):
        engine.receive_weights(bucket)
    engine.commit_weights(version)
    engine.resume()


def is_kept(folder: Path, version: int) -> bool:
    """Whether a version is there, and whole."""
    return (folder / str(version) / MANIFEST).exists()


def kept_buckets(folder: Path, version: int) -> list[WeightBucket]:
    """The buckets of a version, for :meth:`miles_core.protocols.RolloutEngine.receive_weights`."""
    home = folder / str(version)
    found = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
    return [
        WeightBucket(
            version,
            each["index"],
            "disk",
            {"path": str(home / each["file"])},
            tuple(TensorEntry(**{**entry, "shape": tuple(entry["shape"])}) for entry in each["entries"]),
            each["nbytes"],
        )
        for each in found
    ]
