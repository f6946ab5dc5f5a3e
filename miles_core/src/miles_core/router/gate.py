"""How many calls are in flight, how many wait, and when to say no."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class BusyError(Exception):
    """Neither a place nor room to wait for one."""


class Gate:
    """Lets ``most`` calls in at once and ``waiting`` more wait, in order; the others are turned away.

    So an overload costs its callers a retry, and the router neither its memory nor its file descriptors.
    """

    def __init__(self, most: int, waiting: int) -> None:
        self.most = most
        self.waiting = waiting
        self.inside = 0
        self.refused = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """Calls that wait."""
        return len(self._queue)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place.

        Raises:
            BusyError: the queue is full.
        """
        if self.inside < self.most and not self._queue:
            self.inside += 1
        elif len(self._queue) >= self.waiting:
            self.refused += 1
            raise BusyError(f"{self.inside} calls are in flight and {len(self._queue)} wait")
        else:
            await self._turn()
        try:
            yield
        finally:
            self._leave()

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # the place was handed over in the same moment
            else:
                self._queue.remove(turn)
            raise

    def _leave(self) -> None:
        """Hand the place to the next in the queue."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1
