"""The decoding thread: takes submissions and commands between steps, and decodes in the time left."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from miles_core.errors import MilesError, RunError
from miles_core.samples import FinishReason
from miles_core.serving import PauseMode
from miles_transformers.decoder import Decoder
from miles_transformers.jobs import Job, Submission
from miles_transformers.model import OWNER

T = TypeVar("T")
log = logging.getLogger(__name__)


class Scheduler:
    """Owns the decoder. Public methods may be called from any thread; the work happens in the decoding thread, between steps.

    Args:
        decoder: the decoder.
        blocked: says why nothing may be decoded, if so; asked before every step.
        threads: CPU threads of the decoder; 0 leaves PyTorch's choice.
    """

    def __init__(self, decoder: Decoder, blocked: Callable[[], str], threads: int = 0) -> None:
        self.decoder = decoder
        self.paused: PauseMode | None = None
        self.steps = 0
        self._blocked = blocked
        self._threads = threads
        self._waiting: deque[Job] = deque()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._main, name="miles-decode", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after the current step; requests that run end as aborted."""
        if not self._thread.is_alive():
            return
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join(timeout)

    def call(self, work: Callable[[], T], timeout: float | None = None) -> T:
        """Run ``work`` in the decoding thread, between steps, and return what it returns.

        Raises:
            RunError: ``M456``, the thread has ended.
            TimeoutError: it did not come to it within ``timeout`` seconds.
        """
        return self.post(work).result(timeout)

    def post(self, work: Callable[[], T]) -> Future[T]:
        """Like :meth:`call`, without waiting."""
        future: Future[T] = Future()
        with self._wake:
            if self._ended:
                future.set_exception(RunError("M456", "the engine has stopped", owner=OWNER))
            else:
                self._commands.append((work, future))
                self._wake.notify()
        return future

    def submit(self, submission: Submission) -> None:
        """Queue the jobs of a submission, all at once: when they meet an idle engine, the same submission gives the same steps."""
        self.post(lambda: self._waiting.extend(submission.jobs))

    def abort(self, rids: Iterable[str] | None) -> None:
        """End jobs, or all of them, with what they made so far."""
        wanted = None if rids is None else set(rids)
        self.call(lambda: self._abort(wanted))

    def drop(self, submission: Submission) -> None:
        """End the jobs of a submission that nobody waits for any more."""
        self.post(lambda: self._abort_where(lambda job: job.owner is submission))

    def pause(self, mode: PauseMode) -> None:
        """Stop decoding: end running requests (``abort``), queue them again (``retract``) or keep their slots (``in_place``)."""

        def work() -> None:
            self.paused = mode
            if mode == "abort":
                self._abort(None)
            elif mode == "retract":
                self._requeue(range(self.decoder.table.count))

        self.call(work)

    def resume(self) -> None:
        """Go on decoding."""

        def work() -> None:
            self.paused = None

        self.call(work)

    @property
    def running(self) -> int:
        """Jobs that hold a slot."""
        return self.decoder.table.count

    @property
    def waiting(self) -> int:
        """Jobs without a slot."""
        return len(self._waiting)

    def _main(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._turn():
                pass
            self._abort(None)
        with self._wake:
            commands, self._commands = self._commands, deque()
        for _, future in commands:
            future.set_exception(RunError("M456", "the engine has stopped", owner=OWNER))

    def _turn(self) -> bool:
        """Commands, then one step if there is anything to decode; False when it is time to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._ended or self._commands or self._work())
            if self._ended:
                return False
            commands, self._commands = self._commands, deque()
        for work, future in commands:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
        if self._work():
            try:
                self._step()
            except Exception as error:
                self._fail(error)
        return True

    def _work(self) -> bool:
        if not self._waiting and not self.decoder.table.jobs:
            return False
        return self.paused is None and not self._blocked()

    def _step(self) -> None:
        decoder = self.decoder
        self.steps += 1
        self._score()
        jobs = [job for job in self._waiting if not job.unscored]
        room = decoder.room(jobs) if jobs else 0
        # A prefill stalls every running row, so free slots are filled in lots: when all who wait fit, or an eighth is free.
        if room and (room == len(jobs) or not decoder.table.jobs or room >= max(1, decoder.rows // 8)):
            self._take(jobs[:room])
            try:
                ended = decoder.admit(jobs[:room])
            except Exception:
                self._waiting.extendleft(j for j in reversed(jobs[:room]) if j not in decoder.table.jobs)
                raise
            self._deliver(ended)
        if decoder.table.jobs:
            self._requeue(decoder.overflow())
            self._deliver(decoder.step())

    def _score(self) -> None:
        """Score the prompts of some of those who asked for it; one whose prompt was all it wanted ends."""
        scored = self.decoder.score([job for job in self._waiting if job.unscored])
        ended = [job for job in scored if job.max_new == 0]
        for job in ended:
            job.reason = FinishReason.LENGTH
        self._take(ended)
        self._deliver(ended)

    def _take(self, jobs: Sequence[Job]) -> None:
        """Remove jobs from the queue."""
        taken = {id(job) for job in jobs}
        if taken:
            self._waiting = deque(job for job in self._waiting if id(job) not in taken)

    def _requeue(self, rows: Sequence[int]) -> None:
        if rows:
            jobs = sorted(self.decoder.evict(rows), key=lambda job: job.order)
            self._waiting.extendleft(reversed(jobs))

    def _abort(self, rids: set[str] | None) -> None:
        self._abort_where(lambda job: rids is None or job.request.rid in rids)

    def _abort_where(self, chosen: Callable[[Job], bool]) -> None:
        ended = [job for job in self._waiting if chosen(job)]
        if ended:
            self._waiting = deque(job for job in self._waiting if not chosen(job))
        rows = [row for row, job in enumerate(self.decoder.table.jobs) if chosen(job)]
        if rows:
            ended += self.decoder.evict(rows)
        for job in ended:
            job.reason = FinishReason.ABORT
        self._deliver(ended)

    def _fail(self, error: Exception) -> None:
        """A step failed: nobody's tokens can be trusted, so every request ends with the error."""
        if not isinstance(error, MilesError):
            log.error("decoding failed\n%s", "".join(traceback.format_exception(error)))
            why = f"{type(error).__name__}: {error}"
            fix = "see the engine's log; when memory ran out, lower --transformers-max-batch or --transformers-kv-cache-share"
            error = RunError("M456", "decoding failed", owner=OWNER, why=why, fix=fix)
        jobs = [*self.decoder.reset(), *self._waiting]
        self._waiting.clear()
        for submission in {id(job.owner): job.owner for job in jobs}.values():
            submission.deliver(error)

    @staticmethod
    def _deliver(jobs: Sequence[Job]) -> None:
        by_owner: dict[int, list[Job]] = {}
        for job in jobs:
            by_owner.setdefault(id(job.owner), []).append(job)
        for ended in by_owner.values():
            ended[0].owner.deliver(ended)
