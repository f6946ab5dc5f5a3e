"""A process, what goes into it and comes out of it, and its end: after its time, after too much output, or by itself."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SCRIPT = Path(__file__).with_name("program_process.py")
START = 10.0
"""Seconds that the script may take until it runs the program; they are none of the program's."""
ERRORS = 4096
"""Bytes kept of the end of what a program writes to its standard error."""


@dataclass
class Ended:
    """A process that has ended.

    Attributes:
        status: exit status, negative for a signal.
        output: of the standard output.
        errors: the end of the standard error.
        report: what the script around the program had to say.
        problem: why the process was ended from outside; empty when it was not.
    """

    status: int
    output: bytes
    errors: bytes
    report: dict[str, Any]
    problem: str = ""

    def fate(self) -> str:
        """How a process that reported nothing ended, in words."""
        last = self.errors.decode("utf-8", "replace").strip().splitlines()[-1:]
        if last and self.status >= 0:
            return last[0][:200]
        return f"ended by signal {-self.status}" if self.status < 0 else f"ended with status {self.status} before the test was over"


def supervise(told: bytes, stdin: bytes, folder: str, seconds: float, allowed: int) -> Ended:
    """Start the script in ``folder``, hand it ``told``, and wait for its end, which comes ``seconds`` after the program began at
    the latest.

    Args:
        allowed: bytes of output, and of the report, that the process may write.
    """
    told_read, told_write = os.pipe()
    report_read, report_write = os.pipe()
    command = [sys.executable, "-I", str(SCRIPT), folder, str(told_read), str(report_write)]
    # Nothing of this process's environment, which may hold keys.
    environment = {"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            pass_fds=(told_read, report_write),
            start_new_session=True,
            cwd=folder,
            env=environment,
        )
    except OSError:
        os.close(told_write)
        os.close(report_read)
        raise
    finally:
        os.close(told_read)
        os.close(report_write)
    streams = _Streams(seconds, allowed)
    try:
        problem = streams.pump(
            inputs=[(told_write, told), (_taken(process.stdin), stdin)],
            outputs={
                _taken(process.stdout): streams.output,
                _taken(process.stderr): streams.errors,
                report_read: streams.report,
            },
        )
        if not problem:
            try:
                process.wait(max(streams.deadline - time.monotonic(), 0.001))
            except subprocess.TimeoutExpired:
                problem = "time limit"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if not problem and status in (-signal.SIGXCPU, -signal.SIGKILL):
        problem = "killed by the system: too much processor time, or memory"
    try:
        said = json.loads(streams.report) if streams.report else {}
    except (ValueError, RecursionError):
        said = {}
    return Ended(status, bytes(streams.output), bytes(streams.errors), said if isinstance(said, dict) else {}, problem)


def _taken(stream: IO[bytes] | None) -> int:
    """The descriptor of a stream, without the stream."""
    assert stream is not None
    descriptor = os.dup(stream.fileno())
    stream.close()
    return descriptor


class _Streams:
    """Writes and reads pipes at once, so that neither side waits for the other for ever."""

    def __init__(self, seconds: float, allowed: int) -> None:
        self.deadline = time.monotonic() + START + seconds
        self._seconds = seconds
        self.output = bytearray()
        self.errors = bytearray()
        self.report = bytearray()
        self._allowed = allowed

    def pump(self, inputs: list[tuple[int, bytes]], outputs: dict[int, bytearray]) -> str:
        """Until every output has ended; returns the problem that ended it sooner. Closes all descriptors."""
        left = {descriptor: memoryview(data) for descriptor, data in inputs}
        with selectors.DefaultSelector() as selector:
            for descriptor in left:
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_WRITE)
            for descriptor in outputs:
                selector.register(descriptor, selectors.EVENT_READ)
            reading = set(outputs)
            try:
                while reading:
                    wait = self.deadline - time.monotonic()
                    if wait <= 0:
                        return "time limit"
                    for key, _ in selector.select(wait):
                        descriptor = key.fd
                        if descriptor in left:
                            done = self._write(descriptor, left)
                        else:
                            done = self._read(descriptor, outputs[descriptor])
                            if len(self.output) > self._allowed or len(self.report) > self._allowed:
                                return "too much output"
                        if done:
                            selector.unregister(descriptor)
                            os.close(descriptor)
                            reading.discard(descriptor)
                return ""
            finally:
                for key in list(selector.get_map().values()):
                    os.close(key.fd)

    def _write(self, descriptor: int, left: dict[int, memoryview]) -> bool:
        try:
            left[descriptor] = left[descriptor][os.write(descriptor, left[descriptor]) :] if left[descriptor] else left[descriptor]
        except BlockingIOError:
            return False
        except OSError:
            # The process does not read what it is given, or has ended.
            return True
        return not left[descriptor]

    def _read(self, descriptor: int, into: bytearray) -> bool:
        chunk = os.read(descriptor, 65536)
        if into is self.report and chunk and not into:
            # The first byte of a report says that the program begins.
            self.deadline = time.monotonic() + self._seconds
        into += chunk
        if into is self.errors:
            del into[:-ERRORS]
        return not chunk
