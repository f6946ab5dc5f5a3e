"""An engine's side of the weight transaction, real but small, and handles that reach it over threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from miles_core.errors import RunError
from miles_core.protocols import WeightBucket
from miles_core.weights import digest, open_bucket

torch.set_num_threads(1)


@dataclass
class Receiver:
    """Holds parameters by name, and serves them only outside of a transaction."""

    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    served: dict[str, torch.Tensor] = field(default_factory=dict)
    version: int = 0
    paused: bool = False
    open_version: int | None = None
    calls: list[str] = field(default_factory=list)
    before_copy: Callable[[WeightBucket], None] = lambda _bucket: None
    _incoming: dict[str, torch.Tensor] = field(default_factory=dict)

    def pause(self, mode: str = "abort") -> None:
        self.calls.append("pause")
        self.paused = True

    def flush(self) -> None:
        self.calls.append("flush")
        assert self.paused

    def resume(self) -> None:
        self.calls.append("resume")
        if self.open_version is not None:
            raise RunError("M499", "resume within a transaction")
        self.paused = False

    def begin_weights(self, version: int) -> None:
        self.calls.append("begin")
        assert self.paused
        self.open_version = version
        self._incoming = {}

    def receive_weights(self, bucket: WeightBucket) -> None:
        self.calls.append("receive")
        assert bucket.version == self.open_version
        self.before_copy(bucket)
        with open_bucket(bucket) as tensors:
            for name, tensor in tensors:
                self._incoming[name] = tensor.clone()

    def commit_weights(self, version: int) -> None:
        self.calls.append("commit")
        assert version == self.open_version
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self._incoming.items()}
        if found != self.shapes:
            raise RunError("M499", f"parameters {sorted(set(self.shapes) ^ set(found))} do not fit")
        self.served, self.version, self.open_version = self._incoming, version, None

    def weight_dtypes(self) -> dict[str, str]:
        return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self.served.items()}

    def weight_digests(self) -> dict[str, str]:
        return {name: digest(tensor) for name, tensor in self.served.items()}


class ThreadHandle:
    """One thread per engine, so that calls run in order and beside the sender."""

    def __init__(self, name: str, receiver: Any) -> None:
        self.name = name
        self.receiver = receiver
        self._pool = ThreadPoolExecutor(1)

    def call(self, method: str, *args: Any) -> Future[Any]:
        return self._pool.submit(getattr(self.receiver, method), *args)

    def wait(self, futures: Sequence[Future[Any]], timeout: float) -> list[Any]:
        return [future.result(timeout) for future in futures]


@dataclass(frozen=True)
class Bench:
    """Random weights of mixed dtypes, and makers of what receives them."""

    weights: dict[str, torch.Tensor]

    def receiver(self) -> Receiver:
        return Receiver({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights.items()})

    def handles(self, *receivers: Any) -> list[ThreadHandle]:
        return [ThreadHandle(f"engine-{i}", receiver) for i, receiver in enumerate(receivers)]

    def assert_served(self, receiver: Receiver, version: int) -> None:
        assert receiver.version == version
        assert not receiver.paused
        for name, tensor in self.weights.items():
            assert torch.equal(receiver.served[name], tensor), name


@pytest.fixture
def bench() -> Bench:
    torch.manual_seed(0)
    weights = {f"layers.{i}.weight": torch.randn(8, 16) for i in range(6)}
    weights["embed.weight"] = torch.randn(40, 16).to(torch.bfloat16)
    weights["scale"] = torch.tensor(3.5)
    weights["ids"] = torch.arange(5)
    weights["transposed"] = torch.randn(3, 7).t()
    weights["mask"] = torch.tensor([True, False, True])
    return Bench(weights)
