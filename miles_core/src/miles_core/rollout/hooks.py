"""Functions that options name by dotted path, as the rollout manager and the trainer call them.

Each takes its own few arguments, or ``args`` with every option in front of them in the order that scripts for miles have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from miles_core.errors import MilesError, RunError
from miles_core.options import Config
from miles_core.plugins.adapters import Arguments
from miles_core.plugins.causes import describe
from miles_core.samples import Sample

if TYPE_CHECKING:
    from miles_core.training.rows import TrainRow

Groups = list[list[Sample]]


class Hook:
    """A function with the flag that names it; what fails in it ends the run as one line (M407)."""

    flag = ""

    def __init__(self, function: Callable[..., Any], call: tuple[str, ...], name: str, config: Config) -> None:
        self.name = name
        self._function = function
        self._call = call
        self._leading: tuple[Any, ...] = (Arguments(config),) if call[0] == "args" else ()
        self._middle: tuple[Any, ...] = (Arguments(config),) if "args" in call[1:] else ()

    def call(self, *arguments: Any) -> Any:
        """What the function answers.

        Raises:
            RunError: M407.
        """
        try:
            return self._function(*self._leading, *arguments)
        except MilesError:
            raise
        except (Exception, SystemExit) as error:
            raise self.error(f"failed with {describe(error)}", "repair the function") from error

    def error(self, what: str, fix: str) -> RunError:
        """A breach of the function's contract."""
        return RunError("M407", f"the function {what}", owner=f"{self.flag} {self.name}", fix=fix)


class BufferFilter(Hook):
    """``fn(buffer, num_samples)`` or ``fn(args, rollout_id, buffer, num_samples)``: removes groups from the list, returns them."""

    flag = "--buffer-filter-path"

    def __call__(self, rollout_id: int, buffer: Groups, count: int) -> Groups:
        """See :data:`miles_core.rollout.buffer.Pick`."""
        leading = (rollout_id,) if self._leading else ()
        taken: Groups = self.call(*leading, buffer, count)
        return taken


class SampleFilter(Hook):
    """``fn(groups)`` or ``fn(args, groups)``: sets ``remove_sample`` of samples that are not to be trained on."""

    flag = "--rollout-sample-filter-path"

    def __call__(self, groups: Groups) -> None:
        """Mark samples; the rollout stays what it is."""
        before = [[id(sample) for sample in group] for group in groups]
        self.call(groups)
        if [[id(sample) for sample in group] for group in groups] != before:
            raise self.error("changed the lists of samples", "set sample.remove_sample = True, and leave the lists as they are")


class AllSamples(Hook):
    """``fn(groups)`` or ``fn(args, groups, get_samples)``: sees every group that was graded in this rollout."""

    flag = "--rollout-all-samples-process-path"

    def __call__(self, groups: Groups, get_samples: Callable[[int], Groups]) -> None:
        """Look at copies of the lists; what the function returns does not matter."""
        further = (get_samples,) if self._leading else ()
        self.call([list(group) for group in groups], *further)


class RewardPostProcess(Hook):
    """``fn(samples)`` or ``fn(args, samples)``: returns ``(raw_rewards, rewards)``, one of each per sample."""

    flag = "--custom-reward-post-process-path"

    def __call__(self, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
        """Raw and shaped rewards of graded samples."""
        fix = "return (raw_rewards, rewards), one finite number of each per sample"
        answer = self.call(list(samples))
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise self.error(f"returned {type(answer).__name__}, not two lists", fix)
        found = []
        for name, values in zip(("raw_rewards", "rewards"), answer, strict=True):
            try:
                numbers = [float(value) for value in values]
            except (TypeError, ValueError) as error:
                raise self.error(f"returned {name} that are no numbers: {error}", fix) from error
            if len(numbers) != len(samples):
                raise self.error(f"returned {len(numbers)} {name} for {len(samples)} samples", fix)
            if not all(abs(number) < float("inf") for number in numbers):
                raise self.error(f"returned {name} that are not finite", fix)
            found.append(numbers)
        return found[0], found[1]


class Converter(Hook):
    """``fn(samples)`` or ``fn(args, samples)``: returns rows, or a dict of lists, see :mod:`miles_core.rollout.legacy`."""

    flag = "--custom-convert-samples-to-train-data-path"

    def __call__(self, samples: Sequence[Sample]) -> list[TrainRow]:
        """One row per sample, checked."""
        from miles_core.rollout.legacy import checked_rows

        return checked_rows(self.call(list(samples)), samples, self.error)


class DataPostprocess(Hook):
    """``fn(rollout_id, rollout_data)`` or ``fn(args, rollout_id, rollout_data)``: runs in every training rank on its rows."""

    flag = "--rollout-data-postprocess-path"

    def __call__(self, rollout_id: int, data: dict[str, Any]) -> None:
        """See :mod:`miles_core.training.postprocess`."""
        self.call(rollout_id, data)
