"""Ctrl-C and SIGTERM end a run in good order, whatever the driver does at that moment."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_asked = threading.Event()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While this lasts, both signals are a ``KeyboardInterrupt`` in the driver; Ctrl-C where it was not ignored before, as it is in
    what a script starts in the background."""
    _asked.clear()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    renew()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def renew() -> None:
    """Take the signals back from a library that has put handlers of its own in place."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def check() -> None:
    """Raise what a signal has raised, where that was lost: an exception in a destructor or a callback of C code goes nowhere."""
    if _asked.is_set():
        raise KeyboardInterrupt


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt
