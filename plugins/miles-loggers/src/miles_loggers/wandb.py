"""The logger ``wandb``: Weights & Biases."""

from __future__ import annotations

import math
import secrets
import string
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.config import DataOptions
from miles_core.errors import RunError
from miles_core.loggers.axes import AXES, ROLLOUT, TRAIN, by_axis
from miles_loggers.mode import wandb_mode
from miles_loggers.options import WandbOptions
from miles_loggers.progress import Logged

if TYPE_CHECKING:
    from miles_core.options import Config

STATE = "wandb.json"
"""In the run folder: the run's id, and how far each axis is logged."""
_ROLLOUT_NAMES = ("rollout", "perf", "multi_turn", "passrate")


class WandbLogger:
    """One W&B run for a run folder, in the driver.

    Metrics have a step of their own for each axis: ``train/step``, ``rollout/step`` and ``eval/step``. W&B does not take back what
    it was told: a resumed run goes on in the same W&B run, and steps that it makes again are not logged twice.

    The key is given to the library as a setting of this process alone: it is in no file, and the command line, which may have it,
    is kept from the library's description of the run. With mode ``disabled`` the library is not imported.
    """

    def __init__(self, config: Config) -> None:
        self._options = config.get(WandbOptions)
        self._factor = 1
        if self._options.wandb_always_use_train_step:
            self._factor = config.get(DataOptions).num_steps_per_rollout or 1
        self._mode = wandb_mode(self._options)
        self._run: Any = None
        self._logged = Logged(Path(STATE))

    def start(self, run_dir: str, settings: Mapping[str, object], first: Mapping[str, int]) -> None:
        """Begin a W&B run, or go on with the one that ``--wandb-run-id`` or the run folder names."""
        options = self._options
        # Read whatever the mode is: none of them is an option that nobody reads.
        team, project, host, key = options.wandb_team, options.wandb_project, options.wandb_host, options.wandb_key
        group, suffixed = options.wandb_group or Path(run_dir).name, not options.disable_wandb_random_suffix
        earlier = Logged.read(Path(run_dir, STATE))
        resumes = first[ROLLOUT] > 0
        run_id = options.wandb_run_id or (earlier.run_id if resumes else "") or _new_id()
        if self._mode == "disabled":
            return
        import wandb

        known = resumes and earlier.run_id == run_id
        self._logged = earlier if known else Logged(Path(run_dir, STATE), run_id)
        name = f"{group}_{run_id}" if suffixed else group
        try:
            with _hidden_arguments():
                self._run = wandb.init(
                    id=run_id,
                    entity=team,
                    project=project,
                    group=name,
                    name=name,
                    dir=run_dir,
                    config={flag.removeprefix("--"): value for flag, value in settings.items()},
                    # A run without a server cannot be looked up; its files continue the run when they are synchronised.
                    resume="allow" if self._mode == "online" else None,
                    settings=wandb.Settings(
                        mode=self._mode,
                        api_key=key,
                        base_url=host or wandb.Settings().base_url,
                        console="off",
                        quiet=True,
                        disable_code=True,
                        disable_git=True,
                        disable_job_creation=True,
                    ),
                )
        except wandb.Error as error:
            why, fix = str(error), "run wandb login, check --wandb-host and --wandb-key, or use --wandb-mode offline"
            raise RunError("M467", "cannot log to Weights & Biases", owner="miles-loggers", why=why, fix=fix) from error
        for axis in AXES:
            self._run.define_metric(f"{axis}/step", hidden=True)
        for name in (*_ROLLOUT_NAMES, TRAIN, "eval"):
            axis = ROLLOUT if name in _ROLLOUT_NAMES else name
            self._run.define_metric(f"{name}/*", step_metric=f"{axis}/step")
        if self._run.resumed and not known:
            self._logged.last = dict(self._found_steps())
        self._logged.write()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log what is new, under the step of its axis."""
        if self._run is None:
            return
        for axis, found in by_axis(metrics).items():
            if self._logged.is_new(axis, step):
                row: dict[str, float] = {name: float(value) for name, value in found.items()}
                self._run.log({**row, f"{axis}/step": self._shown(axis, step)})
                self._logged.advance({axis: step})

    def close(self) -> None:
        """Flush; with a server, until everything is there."""
        if self._run is not None:
            import wandb

            # Loggers are closed while the error that ends a run is on its way.
            self._run.finish(exit_code=0 if sys.exc_info()[0] is None else 1)
            self._run = None
            # The library's own process writes files after a run has finished, and must not outlive this one.
            wandb.teardown()

    def _shown(self, axis: str, step: int) -> int:
        return step if axis == TRAIN else step * self._factor

    def _found_steps(self) -> Iterator[tuple[str, int]]:
        """How far the resumed W&B run is."""
        for axis in AXES:
            value = self._run.summary.get(f"{axis}/step")
            if isinstance(value, int | float) and math.isfinite(value):
                yield axis, int(value) if axis == TRAIN else int(value) // self._factor


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


@contextmanager
def _hidden_arguments() -> Iterator[None]:
    """The library describes a run by its command line, which may have a key in it."""
    before = sys.argv
    sys.argv = before[:1]
    try:
        yield
    finally:
        sys.argv = before
