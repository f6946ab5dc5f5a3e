"""Publishes from a GPU to an engine in another process, and prints what it took. Run by test_transports.py.

Arguments: MiB of weights, and the transport. CUDA IPC goes to the same GPU, a broadcast to a second one. With two GPUs the engine
numbers them the other way round.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from miles_core.protocols import WeightBucket
from miles_core.weights import WeightPublisher, digest, open_bucket, open_transport

MIB = 1 << 20


class Engine:
    """Copies what it receives into parameters on the GPU."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.parameters = {name: torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for name, shape in shapes.items()}

    def receive_weights(self, bucket: WeightBucket) -> None:
        with open_bucket(bucket, "cuda") as tensors:
            for name, tensor in tensors:
                self.parameters[name].copy_(tensor)

    def weight_dtypes(self) -> dict[str, str]:
        return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self.parameters.items()}

    def weight_digests(self) -> dict[str, str]:
        return {name: digest(tensor) for name, tensor in self.parameters.items()}

    def __getattr__(self, name: str) -> Any:
        assert name in ("pause", "flush", "resume", "begin_weights", "commit_weights")
        return lambda *_: None


def serve(pipe: Connection, shapes: dict[str, tuple[int, ...]], transport: str, gpus: int) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(i) for i in reversed(range(gpus)))
    torch.cuda.set_device(gpus - 1 if transport == "cuda_ipc" else 0)
    engine = Engine(shapes)
    while (call := pipe.recv()) is not None:
        try:
            pipe.send(getattr(engine, call[0])(*call[1]))
        except Exception as error:
            pipe.send(error)


class Handle:
    """Calls over a pipe, one at a time."""

    name = "engine-0"

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._answers: list[Any] = []
        self._calls = 0

    def call(self, method: str, *args: object) -> int:
        self._pipe.send((method, args))
        self._calls += 1
        return self._calls - 1

    def wait(self, futures: list[int], timeout: float) -> list[Any]:
        while len(self._answers) <= max(futures):
            if not self._pipe.poll(timeout):
                raise TimeoutError
            self._answers.append(self._pipe.recv())
        for future in futures:
            if isinstance(self._answers[future], BaseException):
                raise self._answers[future]
        return [self._answers[future] for future in futures]


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    transport = sys.argv[2] if len(sys.argv) > 2 else "cuda_ipc"
    shapes = {f"layers.{i}.weight": (megabytes * MIB // 2 // 16 // 1024, 1024) for i in range(16)}
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, shapes, transport, torch.cuda.device_count()), daemon=True)
    process.start()
    weights = {name: torch.randn(shape, device="cuda").bfloat16() for name, shape in shapes.items()}
    handle = Handle(pipe)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    free = []
    for check in (True, False, False):
        publisher = WeightPublisher(
            open_transport(transport, Path.cwd(), "test"), bucket_bytes=megabytes * MIB // 5, check_equal=check, timeout=60
        )
        for version in (1, 2, 3):
            for weight in weights.values():
                weight.add_(1)
            started = time.perf_counter()
            report = publisher.publish(version, weights.items(), [handle])
            sys.stdout.write(f"{transport} {megabytes} MiB, check {check}: {time.perf_counter() - started:.3f} s {report.phases}\n")
        publisher.close()
        free.append(torch.cuda.mem_get_info()[0] / MIB)
    assert torch.cuda.memory_reserved() <= before, "the sender still holds buckets"
    assert free[0] - free[-1] < megabytes / 10, f"free memory went from publish to publish: {free} MiB"
    pipe.send(None)
    process.join(30)


if __name__ == "__main__":
    main()
