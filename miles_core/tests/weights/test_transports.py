"""What is special to each transport."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from miles_core.errors import RunError
from miles_core.protocols import WeightBucket
from miles_core.weights import WeightPublisher, open_bucket, open_transport, remove_stale, run_folder
from miles_core.weights.transports import shared_file

SECONDS = 30


class ProcessHandle:
    """A receiver in a process of its own, reached over a pipe."""

    def __init__(self, name: str, receiver: Any) -> None:
        self.name = name
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=_serve, args=(theirs, receiver), daemon=True)
        self._process.start()
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
        found = [self._answers[future] for future in futures]
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return found

    def stop(self) -> None:
        self._pipe.send(None)
        self._process.join(SECONDS)


def _serve(pipe: Connection, receiver: Any) -> None:
    while (call := pipe.recv()) is not None:
        try:
            pipe.send(getattr(receiver, call[0])(*call[1]))
        except Exception as error:
            pipe.send(error)


@pytest.mark.parametrize("transport", ["shared_file", "disk", "broadcast"])
def test_engines_in_other_processes(transport: str, bench, tmp_path: Path) -> None:
    handles = [ProcessHandle(f"engine-{i}", bench.receiver()) for i in range(2)]
    publisher = WeightPublisher(open_transport(transport, tmp_path, "t"), bucket_bytes=700, check_equal=True, timeout=SECONDS)
    for version in (1, 2):
        bench.weights["scale"] += 1
        assert publisher.publish(version, bench.weights.items(), handles).buckets > 4
    # Fewer engines than before: a broadcast needs another group.
    publisher.publish(3, bench.weights.items(), handles[:1])
    for handle in handles:
        handle.stop()
    publisher.close()


def test_a_broadcast_to_an_engine_that_fails_before_it_takes_part_does_not_hang(bench, tmp_path: Path) -> None:
    receiver = bench.receiver()

    def fail(_bucket: WeightBucket) -> None:
        raise MemoryError("none left")

    receiver.before_copy = fail
    handles = [ProcessHandle("engine-0", receiver), ProcessHandle("engine-1", bench.receiver())]
    publisher = WeightPublisher(open_transport("broadcast", tmp_path, "t"), bucket_bytes=700, timeout=SECONDS)
    with pytest.raises(RunError, match=r"M470 .*engine-0 failed taking bucket 0 .*MemoryError: none left"):
        publisher.publish(1, bench.weights.items(), handles)


def test_segments_are_made_once_and_removed_at_the_end(bench, tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    publisher = WeightPublisher(open_transport("shared_file", tmp_path, "t"), bucket_bytes=700)
    receiver = bench.receiver()
    handles = bench.handles(receiver)
    publisher.publish(1, bench.weights.items(), handles)
    files = {path.name: path.stat().st_ino for path in folder.iterdir()}
    publisher.publish(2, bench.weights.items(), handles)
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == files
    assert len(files) == 2
    assert (folder.stat().st_mode & 0o777, next(folder.iterdir()).stat().st_mode & 0o777) == (0o700, 0o600)
    publisher.close()
    assert not folder.exists()
    bench.assert_served(receiver, 2)


def test_a_bucket_takes_only_the_memory_that_it_fills(bench, tmp_path: Path) -> None:
    publisher = WeightPublisher(open_transport("shared_file", tmp_path, "t"), bucket_bytes=1 << 40)
    publisher.publish(1, bench.weights.items(), bench.handles(bench.receiver()))
    used = sum(path.stat().st_blocks * 512 for path in run_folder(tmp_path).iterdir())
    publisher.close()
    assert 0 < used <= shared_file.GRANULE


def test_full_shared_memory_is_an_error_not_a_crash(tmp_path: Path) -> None:
    transport = open_transport("shared_file", tmp_path, "t")
    capacity = 2 * shutil.disk_usage(run_folder(tmp_path).parent).total
    buffer = transport.buffer(0, capacity)
    with pytest.raises(RunError, match=r"M471 .*no room for a bucket of weights of \d+ bytes .*lower --update-weight-buffer-size"):
        buffer.reserve(capacity)
    transport.close()


def test_a_truncated_or_missing_file_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "bucket"
    bucket = WeightBucket(1, 0, "shared_file", {"path": str(path)}, (), 8192)
    with pytest.raises(RunError, match=r"M475 .*No such file"), open_bucket(bucket):
        pass
    path.write_bytes(b"short")
    with pytest.raises(RunError, match=r"M475 .*it has 5 bytes, not 8192"), open_bucket(bucket):
        pass


def test_what_a_crashed_run_left_is_removed(tmp_path: Path) -> None:
    transport = open_transport("shared_file", tmp_path, "t")
    transport.buffer(0, 100).reserve(100)
    folder = run_folder(tmp_path)
    assert folder.is_dir()
    assert remove_stale(folder)
    assert not folder.exists()
    assert not remove_stale(folder)


def test_runs_do_not_share_folders(tmp_path: Path) -> None:
    assert run_folder(tmp_path / "a") != run_folder(tmp_path / "b")
    assert run_folder(tmp_path / "a") == run_folder(tmp_path / "b" / ".." / "a")


def test_an_unknown_transport_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"M475 .*'pigeon'.*broadcast, cuda_ipc, disk, process_group, shared_file"):
        open_transport("pigeon", tmp_path, "t")


def test_the_driver_asks_for_folders_without_importing_torch() -> None:
    script = "import sys; from miles_core.weights.transports import run_folder; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env={**os.environ})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_cuda_ipc_to_another_process(tmp_path: Path) -> None:
    script = Path(__file__).with_name("gpu_main.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
