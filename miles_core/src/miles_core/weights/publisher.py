"""The transaction that gives engines new weights."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from miles_core.errors import MilesError, RunError
from miles_core.protocols.engine import WeightBucket
from miles_core.weights.bucket import Bucket, Buffer, pack
from miles_core.weights.digests import as_dtype, digest

if TYPE_CHECKING:
    import torch

    from miles_core.weights.kept import WeightKeeper
    from miles_core.weights.transports import Transport

SHOWN = 3
"""Parameters that an error lists by name."""


class EngineHandle(Protocol):
    """How the sender reaches one engine. Calls to one engine run one after the other, in order."""

    @property
    def name(self) -> str:
        """For errors."""
        ...

    def call(self, method: str, *args: Any) -> Any:
        """Start a method of :class:`miles_core.protocols.RolloutEngine`; returns a future at once."""
        ...

    def wait(self, futures: Sequence[Any], timeout: float) -> list[Any]:
        """Results in order, or the first exception that a call raised; ``TimeoutError`` after ``timeout`` seconds."""
        ...


@dataclass(frozen=True)
class PublishReport:
    """A finished publish: ``bytes`` of weights in ``buckets`` buckets to each engine; ``seconds`` in all and by phase."""

    version: int
    bytes: int
    buckets: int
    seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)


def drain(export: Iterable[object]) -> None:
    """Take part in an export on a rank that sends nothing: exporting is collective, so every rank must iterate to the end."""
    deque(export, maxlen=0)


class WeightPublisher:
    """Publishes versions of the weights over one transport.

    pause, flush, begin, buckets, commit, compare, resume: an engine serves nothing from begin to commit, and after any failure it
    stays paused, so that no half-updated version is ever sampled from. With a transport of two slots the engines copy one bucket
    while the next is filled; a slot is filled again only when every engine has copied it.

    Args:
        transport: owned by the publisher from here on.
        bucket_bytes: size of a bucket; a larger tensor gets a bucket of its own.
        check_equal: compare SHA-256 digests of every parameter before engines resume.
        timeout: seconds that one call of an engine may take.
    """

    def __init__(self, transport: Transport, *, bucket_bytes: int, check_equal: bool = False, timeout: float = 600.0) -> None:
        if bucket_bytes < 1:
            raise ValueError(f"a bucket of {bucket_bytes} bytes holds nothing")
        self._transport = transport
        self._bucket_bytes = bucket_bytes
        self._check_equal = check_equal
        self._timeout = timeout

    def publish(
        self,
        version: int,
        export: Iterable[tuple[str, torch.Tensor]],
        engines: Sequence[EngineHandle],
        *,
        resume: bool = True,
        keeper: WeightKeeper | None = None,
    ) -> PublishReport:
        """Make ``engines`` serve the weights of ``export`` as ``version``.

        With ``resume`` false the engines stay paused, for a caller that has to make room for their caches first. A ``keeper`` gets
        every bucket, too.

        Raises:
            RunError: an engine failed (M470), the digests differ (M473), nothing was exported (M474), or the transport failed
                (M471, M475). The engines stay closed.
        """
        transaction = _Transaction(self._transport, version, engines, self._timeout, self._check_equal, keeper)
        return transaction.run(export, self._bucket_bytes, resume)

    def forget(self) -> None:
        """Other engines take the place of those that took part so far: what was shared with them is given up."""
        self._transport.abort()

    def close(self) -> None:
        """Free what the transport holds."""
        self._transport.close()


class _Transaction:
    """One publish."""

    def __init__(
        self,
        transport: Transport,
        version: int,
        engines: Sequence[EngineHandle],
        timeout: float,
        check_equal: bool,
        keeper: WeightKeeper | None,
    ) -> None:
        self.transport = transport
        self.version = version
        self.engines = engines
        self.timeout = timeout
        self.check_equal = check_equal
        self.keeper = keeper
        self.sent: deque[tuple[int, list[Any]]] = deque()
        self.digests: dict[str, str] = {}
        self.dtypes: dict[str, str] = {}
        self.phases: dict[str, float] = {}

    def run(self, export: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int, resume: bool) -> PublishReport:
        started = time.perf_counter()
        with self._phase("pause"):
            self._all("pause")
        with self._phase("flush"):
            self._all("flush")
        with self._phase("begin"):
            self._all("begin_weights", self.version)
        if self.keeper is not None:
            self.keeper.begin(self.version)
        nbytes = buckets = 0
        if self.check_equal and self.engines:
            self.dtypes = self._all("weight_dtypes")[0]
        with self._phase("send"):
            self.transport.begin(len(self.engines))
            try:
                for bucket in pack(self._seen(export), bucket_bytes, self._buffer):
                    self._send(bucket)
                    nbytes += sum(entry.nbytes for entry in bucket.entries)
                    buckets += 1
                while self.sent:
                    self._await_oldest()
            except BaseException:
                # Engines may still be reading, or wait for bytes that never come: nothing of this publish is used again.
                self.transport.abort()
                raise
            self.transport.end()
        if not buckets:
            raise self._error("M474", "the trainer exported no weights", fix="report it to the owner of the backend")
        with self._phase("commit"):
            self._all("commit_weights", self.version)
        if self.check_equal:
            with self._phase("check"):
                self._compare()
        if self.keeper is not None:
            self.keeper.finish()
        if resume:
            with self._phase("resume"):
                self._all("resume")
        return PublishReport(self.version, nbytes, buckets, time.perf_counter() - started, self.phases)

    def _seen(self, export: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in export:
            if self.check_equal:
                self.digests[name] = digest(as_dtype(tensor, self.dtypes.get(name)))
            yield name, tensor

    def _buffer(self, index: int, nbytes: int) -> Buffer:
        while len(self.sent) >= self.transport.slots:
            self._await_oldest()
        return self.transport.buffer(index % self.transport.slots, nbytes)

    def _send(self, bucket: Bucket) -> None:
        slot = bucket.index % self.transport.slots
        handles = self.transport.stage(slot, bucket, len(self.engines))
        futures = [
            engine.call(
                "receive_weights",
                WeightBucket(self.version, bucket.index, self.transport.name, handle, bucket.entries, bucket.nbytes),
            )
            for engine, handle in zip(self.engines, handles, strict=True)
        ]
        self.sent.append((bucket.index, futures))
        self.transport.transmit(slot, self._check_sent)
        if self.keeper is not None:
            self.keeper.add(bucket)

    def _check_sent(self) -> None:
        """Raise when an engine has failed to take a bucket that was sent."""
        for index, futures in self.sent:
            for engine, future in zip(self.engines, futures, strict=True):
                with contextlib.suppress(TimeoutError):
                    self._result(engine, future, self._taking(index), 0.0)

    def _await_oldest(self) -> None:
        index, futures = self.sent[0]
        self._wait(futures, self._taking(index))
        self.sent.popleft()
        self.transport.release(index % self.transport.slots)

    def _taking(self, index: int) -> str:
        return f"taking bucket {index} of version {self.version}"

    def _all(self, method: str, *args: object) -> list[Any]:
        return self._wait([engine.call(method, *args) for engine in self.engines], f"in {method}")

    def _wait(self, futures: Sequence[Any], doing: str) -> list[Any]:
        """Results of one call to each engine."""
        deadline = time.monotonic() + self.timeout
        results = []
        for engine, future in zip(self.engines, futures, strict=True):
            try:
                results.append(self._result(engine, future, doing, max(0.0, deadline - time.monotonic())))
            except TimeoutError as error:
                raise self._failed(engine, doing, str(error) or f"no answer within {self.timeout:.0f} s") from error
        return results

    def _result(self, engine: EngineHandle, future: Any, doing: str, timeout: float) -> Any:
        try:
            return engine.wait([future], timeout)[0]
        except TimeoutError:
            raise
        except Exception as error:
            why = error.line() if isinstance(error, MilesError) else f"{type(error).__name__}: {error}"
            raise self._failed(engine, doing, why) from error

    def _compare(self) -> None:
        """Raise when an engine's parameter differs from the trainer's. A name beyond those exported is the engine's own matter."""
        for engine, found in zip(self.engines, self._all("weight_digests"), strict=True):
            wrong = [name for name, expected in self.digests.items() if found.get(name) not in (expected, "")]
            if wrong:
                shown = ", ".join(f"{name} ({'differs' if name in found else 'is not there'})" for name in wrong[:SHOWN])
                rest = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
                raise self._error(
                    "M473",
                    f"{engine.name} does not have the trainer's weights of version {self.version}",
                    why=f"{len(wrong)} of {len(self.digests)} parameters are wrong: {shown}{rest}",
                    fix="check how the engine maps names and dtypes of parameters",
                    engine=engine.name,
                    parameters=tuple(wrong),
                )

    def _failed(self, engine: EngineHandle, doing: str, why: str) -> RunError:
        return self._error(
            "M470",
            f"{engine.name} failed {doing}",
            why=why,
            fix="see the engine's log; it stays closed until weights are published to it again",
            engine=engine.name,
        )

    def _error(self, code: str, what: str, *, why: str = "", fix: str, **data: object) -> RunError:
        return RunError(code, what, owner="miles-core", why=why, fix=fix, version=self.version, **data)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.phases[name] = time.perf_counter() - started
