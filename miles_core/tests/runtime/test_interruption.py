"""Signals that end a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from miles_core.runtime import interruption


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Last:
    """Has a destructor in which a signal comes."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_interrupt(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), interruption.interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_destructor_swallows_is_raised_later(number: int) -> None:
    with interruption.interruptible():
        interruption.check()
        last = Last(number)
        del last
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
    with interruption.interruptible():
        interruption.check()


def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruption.interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        interruption.check()
        interruption.renew()
        os.kill(os.getpid(), signal.SIGINT)
        interruption.check()
