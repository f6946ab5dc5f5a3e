"""Functions named by an option, as implementations of the protocols."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from miles_core.config import RewardOptions
from miles_core.errors import RunError
from miles_core.options import Config, Option
from miles_core.plugins.causes import describe
from miles_core.plugins.index import closest
from miles_core.protocols import Decision
from miles_core.samples import Invalid, Sample, SampleGroup, Score, Scored, Timeout


class Arguments:
    """Every option as a read-only attribute named like its flag (``args.rollout_batch_size``), for functions that take ``args``.

    Reading one counts as reading the option.
    """

    def __init__(self, config: Config) -> None:
        names: dict[str, tuple[Option, Any]] = {}
        for option, value in config.items():
            names[option.field] = (option, value.value)
        for option, value in config.items():
            for flag in (*option.declared.aliases, option.flag):
                names[flag.lstrip("-").replace("-", "_")] = (option, value.value)
        object.__setattr__(self, "_config", config)
        object.__setattr__(self, "_names", names)

    def __getattr__(self, name: str) -> Any:
        try:
            option, value = self._names[name]
        except KeyError:
            near = closest(name, self._names)
            hint = f"; did you mean {near!r}?" if near else ""
            raise AttributeError(f"there is no option {name!r}{hint}", name=name, obj=self) from None
        self._config.mark_read(option.group, option.field)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"options are read-only: {name!r} cannot be set")

    def __reduce__(self) -> tuple[Any, ...]:
        return Arguments, (self._config,)


class FunctionReward:
    """A reward made of a function of one sample (:class:`miles_core.protocols.Reward`).

    A plain function runs in ``--reward-workers`` threads, so that it does not block the event loop; an async one on the loop, all
    samples at once. One that takes longer than ``--reward-timeout`` seconds scores as ``Timeout``; a plain function's thread
    cannot be ended and is left behind. With ``--group-rm`` it is a function of a list of samples, called once per group, that
    returns as many answers.
    """

    def __init__(self, function: Callable[..., Any], call: tuple[str, ...], name: str, config: Config) -> None:
        options = config.get(RewardOptions)
        self._function = function
        self._leading: tuple[Any, ...] = (Arguments(config),) if call[0] == "args" else ()
        self._name = name
        self._seconds = options.reward_timeout
        self._grouped = options.group_rm
        self._slots = asyncio.Semaphore(max(1, options.reward_workers))
        inner = function if inspect.isroutine(function) else getattr(type(function), "__call__", function)  # noqa: B004 - the method
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inner)

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score per sample, in order."""
        if not self._grouped:
            answers = await asyncio.gather(*(self._call(sample) for sample in samples))
            return [as_score(answer, self._name) for answer in answers]
        answer = await self._call(list(samples))
        if isinstance(answer, (Invalid, Timeout)):
            return [answer] * len(samples)
        if isinstance(answer, (str, bytes, Mapping)) or not hasattr(type(answer), "__iter__"):
            return [Invalid(f"{self._name} returned {type(answer).__name__}, not a list of scores")] * len(samples)
        each = list(answer)
        if len(each) != len(samples):
            return [Invalid(f"{self._name} returned {len(each)} scores for {len(samples)} samples")] * len(samples)
        return [as_score(one, self._name) for one in each]

    async def close(self) -> None:
        """Nothing to end: threads of calls that hang are daemons."""

    async def _call(self, given: Sample | list[Sample]) -> Any:
        """What the function answers, or the failure that calling it is."""
        try:
            if self._is_async:
                answer = await asyncio.wait_for(self._function(*self._leading, given), self._seconds)
            else:
                async with self._slots:
                    answer = await asyncio.wait_for(self._in_thread(given), self._seconds)
            if inspect.isawaitable(answer):
                answer = await asyncio.wait_for(answer, self._seconds)
        except TimeoutError:
            return Timeout(self._seconds, self._name)
        except (Exception, SystemExit) as error:
            return Invalid(" ".join(f"{self._name}: {describe(error)}".split()))
        return answer

    async def _in_thread(self, given: Sample | list[Sample]) -> Any:
        """The answer of one call in a thread of its own, which a hanging call keeps without harm to the next."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def settle(set_it: Callable[[Any], None], value: Any) -> None:
            if not answer.done():
                set_it(value)

        def work() -> None:
            try:
                settled = (answer.set_result, self._function(*self._leading, given))
            except BaseException as error:
                # A future refuses StopIteration, and SystemExit would end the loop: both are the function's failure.
                settled = (
                    answer.set_exception,
                    error
                    if isinstance(error, Exception) and not isinstance(error, StopIteration)
                    else RuntimeError(describe(error)),
                )
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, *settled)

        threading.Thread(target=work, name=f"reward {self._name}", daemon=True).start()
        return await answer


def as_score(answer: Any, name: str) -> Score:
    """A function's answer as a score: a finite number, a mapping or a score; anything else is ``Invalid``."""
    if isinstance(answer, (Scored, Invalid, Timeout)):
        return answer
    if isinstance(answer, Mapping):
        return Scored(dict(answer))
    if isinstance(answer, (str, bytes)) or not hasattr(type(answer), "__float__"):
        return Invalid(f"{name} returned {type(answer).__name__}, not a number, a dict or a Score")
    try:
        number = float(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        return Invalid(f"{name} returned {type(answer).__name__}, which is not one number: {error}")
    return Scored(number) if math.isfinite(number) else Invalid(f"{name} returned {number}")


class FunctionFilter:
    """A filter made of a function of a list of samples (:class:`miles_core.protocols.Filter`)."""

    def __init__(self, function: Callable[..., Any], call: tuple[str, ...], name: str, config: Config) -> None:
        self._function = function
        self._leading: tuple[Any, ...] = (Arguments(config),) if call[0] == "args" else ()
        self._name = name

    def __call__(self, group: SampleGroup) -> Decision:
        """Decide on one group.

        Raises:
            RunError: M111, the function failed or did not answer with a bool or a decision.
        """
        try:
            answer = self._function(*self._leading, list(group))
        except (Exception, SystemExit) as error:
            raise self._error(f"it failed with {describe(error)}") from error
        if isinstance(answer, Decision):
            return answer
        if hasattr(answer, "keep"):
            return Decision(bool(answer.keep), str(getattr(answer, "reason", None) or ""))
        if isinstance(answer, bool) or type(answer).__name__ in ("bool", "bool_"):
            return Decision(bool(answer), "" if answer else self._name.rpartition(".")[2].rpartition(":")[2])
        raise self._error(f"it returned {answer!r}")

    def _error(self, why: str) -> RunError:
        return RunError("M111", f"the filter {self._name!r} failed", why=why, fix="let it return a bool or a Decision")


class ModelProvider:
    """A function that builds one pipeline stage's part of a model, for backends that divide models so.

    It is told which virtual stage it builds if it has a parameter of the name ``vp_stage``.
    """

    def __init__(self, function: Callable[..., Any], call: Sequence[str], name: str, config: Config) -> None:
        self.name = name
        self._function = function
        self._before = (Arguments(config),) if call[0] == "args" else ()
        self._virtual = "vp_stage" in inspect.signature(function).parameters

    def __call__(self, pre_process: bool, post_process: bool, vp_stage: int | None) -> Any:
        """The part with the embedding if ``pre_process``, and with the head if ``post_process``."""
        further = {"vp_stage": vp_stage} if self._virtual else {}
        return self._function(*self._before, pre_process, post_process, **further)
