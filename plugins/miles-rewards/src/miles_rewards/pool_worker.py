"""The process that grades: ``python -m miles_rewards.pool_worker package.module:function BYTES PARENT``.

Reads one JSON list of strings a line, answers with one JSON object a line. Ends when its input does, and on Linux also at once
when its parent dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO

from miles_rewards.ungradable import Ungradable

PR_SET_PDEATHSIG = 1


def main(target: str, memory: int, parent: int) -> None:
    """Serve calls of ``target`` until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    # Whatever a library prints must not mix with the replies.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    try:
        module, _, name = target.partition(":")
        grade: Callable[..., float] = getattr(importlib.import_module(module), name)
    except Exception as error:
        _reply(replies, failed=f"{type(error).__name__}: {error}")
        return
    limit_memory(memory)
    _reply(replies, ready=True)
    while True:
        _reply(replies, **answer(grade, json.loads(lines.get())))


def answer(grade: Callable[..., float], arguments: list[str]) -> dict[str, object]:
    """One call's reply. ``last`` tells the pool to replace this process, whose state is in doubt."""
    # Broad on purpose: a grader is code of others on hostile input, and what it raises belongs into the sample's score.
    try:
        return {"score": float(grade(*arguments))}
    except Ungradable as error:
        return {"invalid": str(error)}
    except MemoryError:
        return {"invalid": "grading needs too much memory", "last": True}
    except RecursionError:
        return {"invalid": "grading recurses too deeply", "last": True}
    except Exception as error:
        return {"invalid": f"the grader failed: {type(error).__name__}: {str(error)[:200]}"}


def limit_memory(extra: int) -> None:
    """Let this process allocate ``extra`` bytes more than it has now, and write no core file."""
    with open("/proc/self/statm", encoding="ascii") if sys.platform == "linux" else contextlib.nullcontext() as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize() if statm else 1 << 30
    # macOS refuses to limit the address space; there the deadline alone bounds a grader.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (now + extra, now + extra))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def die_with(parent: int) -> None:
    """Have Linux kill this process when ``parent`` dies; a closed input ends it elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


def _read_lines(lines: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


def _reply(replies: BinaryIO, **fields: object) -> None:
    replies.write(json.dumps(fields).encode("ascii") + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
