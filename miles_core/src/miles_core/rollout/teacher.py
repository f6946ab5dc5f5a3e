"""Teacher log-probs from a server that speaks SGLang's ``/generate``."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from miles_core.config import TeacherOptions
from miles_core.errors import RunError, UsageError
from miles_core.samples import Sample
from miles_core.serving import wire

if TYPE_CHECKING:
    import aiohttp

PROBE_TEMPERATURE = 0.05
"""Sharpens all but uniform distributions, so that a server that applies it answers otherwise than at temperature 1."""
PROBE_DIFFERENCE = 0.1
"""Least mean difference of log-probs at the two temperatures: rounding on the server stays below."""

_SHOWN = 3
_LONGEST_PAUSE = 30.0
_ROUNDING = 1e-3


class _Failed(Exception):
    """A call that brought nothing. ``again`` says whether another try may help, ``garbage`` whether there was an answer."""

    def __init__(self, why: str, *, again: bool, garbage: bool = False) -> None:
        super().__init__(why)
        self.again, self.garbage = again, garbage


@dataclass
class TeacherTally:
    """How scoring one rollout went. ``details`` are of the first few failures."""

    scored: int = 0
    failed: int = 0
    retries: int = 0
    seconds: float = 0.0
    details: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """Under their names in the log."""
        return {
            "rollout/teacher_failures": float(self.failed),
            "rollout/teacher_retries": float(self.retries),
            "perf/teacher_time": self.seconds,
        }


class TeacherClient:
    """Scores responses on a server. For use in one event loop; :meth:`close` ends its connections.

    Args:
        options: address, time limit, calls at a time and retries.
        temperature: ``--rollout-temperature``: the policy's log-probs are those of logits divided by it, and so the teacher's.
        pause: seconds before the first retry; each further pause is twice as long.
    """

    def __init__(self, options: TeacherOptions, temperature: float, *, pause: float = 0.5) -> None:
        assert options.teacher_url is not None
        self.url = options.teacher_url.rstrip("/").removesuffix("/generate")
        self._timeout = options.teacher_timeout
        self._retries = options.teacher_retries
        self._concurrency = options.teacher_concurrency
        self._headers = {"Content-Type": "application/json"}
        if options.teacher_api_key:
            self._headers["Authorization"] = f"Bearer {options.teacher_api_key}"
        self._temperature = temperature
        self._pause = pause
        self._session: aiohttp.ClientSession | None = None

    async def check(self, tokens: Sequence[int]) -> None:
        """Score ``tokens``, two or more of them, to find out at the start of a run whether the server will do.

        Raises:
            UsageError: it does not answer (M492), not like SGLang (M493), or not at the temperature asked for (M494).
        """
        try:
            plain = await self._patiently(tokens, 1.0, TeacherTally())
            if self._temperature == 1.0:
                return
            sharp = await self._patiently(tokens, PROBE_TEMPERATURE, TeacherTally())
        except _Failed as error:
            if error.garbage:
                fix = "serve the teacher with SGLang's /generate, or with miles' transformers engine"
                raise self._error("M493", "its answer cannot be used", str(error), fix) from None
            fix = "start the server, or correct --teacher-url; a key belongs into MILES_TEACHER_API_KEY"
            raise self._error("M492", "it does not score a first request", str(error), fix) from None
        if sum(abs(a - b) for a, b in zip(plain, sharp, strict=True)) < PROBE_DIFFERENCE * len(plain):
            raise self._error(
                "M494",
                f"it scores at temperature 1, not at --rollout-temperature {self._temperature:g}",
                "its log-probs would be those of another distribution than the policy's",
                "set --rollout-temperature 1, use --teacher-load, or serve the teacher with an engine that applies the temperature "
                "to prompts",
            )

    async def score(
        self, samples: Sequence[Sample], limit: float, advance: Callable[[int, int], None] = lambda done, total: None
    ) -> TeacherTally:
        """Set ``teacher_log_probs`` of every sample that is trained on; one that cannot be scored is ``removed`` from the loss.

        Args:
            samples: of one rollout; those without a response, and failed or removed ones, are left alone.
            limit: share of the samples that may fail, ``--reward-failure-limit``.
            advance: told ``(done, total)``.

        Raises:
            RunError: more failed (M495). What was still to be scored is given up at once.
        """
        tally, started = TeacherTally(), time.perf_counter()
        wanted = [s for s in samples if s.response_length and not (s.removed or s.failed)]
        slots = asyncio.Semaphore(self._concurrency)

        async def one(sample: Sample) -> None:
            async with slots:
                try:
                    log_probs = await self._patiently(sample.tokens, self._temperature, tally)
                except _Failed as error:
                    sample.removed = True
                    tally.failed += 1
                    if len(tally.details) < _SHOWN:
                        tally.details.append(f"sample {sample.index}: {error}")
                    if tally.failed > limit * len(wanted):
                        raise self._too_many(tally, len(wanted)) from None
                else:
                    sample.teacher_log_probs = log_probs[-sample.response_length :]
                    tally.scored += 1
            advance(tally.scored + tally.failed, len(wanted))

        try:
            async with asyncio.TaskGroup() as group:
                for sample in wanted:
                    group.create_task(one(sample))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        tally.seconds = time.perf_counter() - started
        return tally

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _patiently(self, tokens: Sequence[int], temperature: float, tally: TeacherTally) -> list[float]:
        """:meth:`_call`, repeated after growing pauses."""
        for attempt in range(self._retries):
            try:
                return await self._call(tokens, temperature)
            except _Failed as error:
                if not error.again:
                    raise
            tally.retries += 1
            await asyncio.sleep(min(self._pause * 2**attempt, _LONGEST_PAUSE))
        return await self._call(tokens, temperature)

    async def _call(self, tokens: Sequence[int], temperature: float) -> list[float]:
        import aiohttp

        body = {
            "input_ids": list(tokens),
            "sampling_params": {"temperature": temperature, "max_new_tokens": 0, "skip_special_tokens": False},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        try:
            async with self._open().post(f"{self.url}/generate", data=wire.dumps(body), headers=self._headers) as response:
                data = await response.read()
        except TimeoutError:
            raise _Failed(f"it was silent for {self._timeout:g} s", again=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Failed(str(error) or type(error).__name__, again=True) from None
        if response.status != 200:
            text = " ".join(data.decode(errors="replace").split())[:300]
            again = response.status >= 500 or response.status in (408, 429)
            raise _Failed(f"HTTP {response.status}: {text}", again=again)
        try:
            return prompt_log_probs(json.loads(data), tokens)
        except (ValueError, RecursionError) as error:
            raise _Failed(str(error), again=False, garbage=True) from None

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            limit = aiohttp.ClientTimeout(total=self._timeout)
            self._session = aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(limit=0))
        return self._session

    def _too_many(self, tally: TeacherTally, total: int) -> RunError:
        return RunError(
            "M495",
            f"{tally.failed} of {total} samples have no teacher log-probs",
            owner=f"teacher {self.url}",
            why="; ".join(tally.details),
            fix="see its log; raise --teacher-timeout, lower --teacher-concurrency, or raise --reward-failure-limit",
        )

    def _error(self, code: str, what: str, why: str, fix: str) -> UsageError:
        return UsageError(code, what, owner=f"teacher {self.url}", why=why, fix=fix)


def prompt_log_probs(document: Any, tokens: Sequence[int]) -> list[float]:
    """Log-probs of all tokens but the first in an answer of ``/generate``, ``[len(tokens) - 1]``.

    SGLang lists every token as ``[log-prob, id, text or null]``, the first one with a log-prob of null.

    Raises:
        ValueError: the answer is another, is about other tokens, or holds something that is no log-prob.
    """
    if isinstance(document, Mapping) and "error" in document:
        error = document["error"]
        raise ValueError(f"it answers with an error: {error.get('message', error) if isinstance(error, Mapping) else error}")
    meta = document.get("meta_info") if isinstance(document, Mapping) else None
    entries = meta.get("input_token_logprobs") if isinstance(meta, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, list) and len(entry) >= 2 for entry in entries):
        raise ValueError("the answer has no meta_info.input_token_logprobs with a log-prob and an id for each token")
    if len(entries) != len(tokens):
        raise ValueError(f"it scored {len(entries)} tokens of {len(tokens)} that were sent")
    wrong = next((i for i, (entry, token) in enumerate(zip(entries, tokens, strict=True)) if entry[1] != token), None)
    if wrong is not None:
        raise ValueError(f"it scored other tokens than were sent: token {wrong} is {entries[wrong][1]!r}, not {tokens[wrong]}")
    found = [entry[0] for entry in entries[1:]]
    odd = next((value for value in found if not _is_log_prob(value)), None)
    if odd is not None or None in found:
        raise ValueError(f"{odd!r} is no log-prob")
    return found


def _is_log_prob(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value <= _ROUNDING
