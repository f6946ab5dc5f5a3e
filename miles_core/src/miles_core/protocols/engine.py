"""The rollout engine: a server that turns token ids into token ids, and takes new weights as a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class EngineLaunch:
    """Where and with what an engine starts.

    Attributes:
        rank: the engine's number in the run.
        model: HF directory with config, weights and tokenizer.
        host: address to bind to; loopback unless the run spans nodes. Empty in a run stands for that of the node.
        port: port to bind to; 0 lets the engine choose.
        devices: physical accelerator ids, empty on CPU; for an engine over several nodes those of this node.
        node_rank, num_nodes: this node's part of an engine over several nodes; only node 0 serves HTTP.
        meeting: where the parts of such an engine meet, ``HOST:PORT`` on node 0, an IPv6 address in brackets; the 63 ports that
            follow were free, too. Empty for an engine of one node.
        seed: seed of sampling where a request names none.
        memory_saver: whether :meth:`RolloutEngine.release_memory` will be used.
        log_dir: where to write logs.
        api_key: what callers of its HTTP surface have to show as a bearer token; None for none.
        url: of a server that somebody else has started: the engine attaches to it, and leaves it running. Empty for one to start.
    """

    rank: int
    model: Path
    host: str = "127.0.0.1"
    port: int = 0
    devices: tuple[int, ...] = ()
    node_rank: int = 0
    num_nodes: int = 1
    meeting: str = ""
    seed: int = 42
    memory_saver: bool = False
    log_dir: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    url: str = ""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a bucket: ``dtype`` as torch spells it without prefix (``float32``), byte offset in the bucket."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class WeightBucket:
    """A flat run of bytes with named tensors in it, and how to get at it.

    Attributes:
        version: version that the bucket belongs to.
        index: its number in the transaction, from 0.
        transport: ``shared_file``, ``cuda_ipc``, ``broadcast`` or ``disk``.
        handle: what that transport needs to open the bytes; opened with :func:`miles_core.weights.open_bucket`.
    """

    version: int
    index: int
    transport: str
    handle: dict[str, object]
    entries: tuple[TensorEntry, ...]
    nbytes: int


class RolloutEngine(Protocol):
    """Lives in an engine process. Generation goes over HTTP to the URL that :meth:`start` returns (SGLang's ``/generate``,
    ``/abort_request``, ``/health``; see :mod:`miles_core.serving`); weights, memory and lifecycle come through these methods.
    The methods may be called from any thread, one at a time.
    """

    def start(self, launch: EngineLaunch) -> str:
        """Load the model, serve HTTP, return the base URL once healthy.

        Raises:
            MilesError: the engine did not come up; carries the tail of its log.
        """
        ...

    def health(self, timeout: float) -> None:
        """Return when the engine answers; raise otherwise. ``timeout`` in seconds. It may be asked beside any other call."""
        ...

    def ended(self) -> str:
        """Why the engine will never answer again: its server has ended, or a thread of it; empty while it may, and once it was told
        to :meth:`stop`. At once, from any thread, beside any other call."""
        ...

    def pause(self, mode: Literal["abort", "retract", "in_place"] = "abort") -> None:
        """Stop decoding: running requests end as aborted, go back to the queue, or freeze in place."""
        ...

    def resume(self) -> None:
        """Undo :meth:`pause`. Refused while a weight transaction is open."""
        ...

    def flush(self) -> None:
        """Drop cached keys and values of finished requests. Raises while requests run."""
        ...

    def begin_weights(self, version: int) -> None:
        """Open a transaction. The engine must be paused; it serves nothing until :meth:`commit_weights`."""
        ...

    def receive_weights(self, bucket: WeightBucket) -> None:
        """Take one bucket. When this returns the sender may reuse the memory."""
        ...

    def commit_weights(self, version: int) -> None:
        """Close the transaction: every parameter was received, and ``version`` is served from now on.

        Raises:
            MilesError: a parameter is missing or a name is unknown; the engine then stays closed.
        """
        ...

    def weight_dtypes(self) -> dict[str, str]:
        """The dtype that each HF-named parameter is served in, as torch spells it without prefix: ``bfloat16``."""
        ...

    def weight_digests(self) -> dict[str, str]:
        """SHA-256 per HF-named parameter as it is served, by :func:`miles_core.weights.digest`.

        Empty for a tensor that the engine took and has no use for, such as of layers that it does not run.

        Weights that are sent in a wider dtype are rounded once, so the sender compares with what it sent rounded in the same way.
        """
        ...

    def release_memory(self, tags: Sequence[str] = ("weights", "kv_cache")) -> None:
        """Free accelerator memory while the trainer uses it. The engine is idle."""
        ...

    def resume_memory(self, tags: Sequence[str] = ("weights", "kv_cache")) -> None:
        """Undo :meth:`release_memory`. Released weights have undefined content until the next transaction."""
        ...

    def stop(self) -> None:
        """End the server and every process it started."""
        ...
