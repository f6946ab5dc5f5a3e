"""Training the critic on one rollout, for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from miles_core.config import AlgorithmOptions, CriticOptions, TrainingOptions
from miles_core.errors import RunError, UsageError
from miles_core.options import Config
from miles_core.protocols.backend import OutputRequest, StepReport, TrainingBackend
from miles_core.protocols.loss import Loss
from miles_core.training import checks
from miles_core.training.exchange import ByIndex, TokenArrays
from miles_core.training.objective import Objective, step_weights
from miles_core.training.pack import pack, padding_multiple
from miles_core.training.passes import Scorer
from miles_core.training.plan import BinRule
from miles_core.training.reduce import all_sums, reduced
from miles_core.training.report import Clock, TrainReport
from miles_core.training.rows import RankBatch
from miles_core.training.table import RowTable

CRITIC_INPUTS = frozenset({"old_values", "returns", "values"})
"""What a critic gives to its loss."""
PREFIX = "train/critic-"
_OWNER = "miles-core"
_SMALLEST_SPREAD = 1e-9


def critic_config(config: Config) -> Config:
    """The options as the critic's optimizer reads them: ``--critic-lr`` and ``--critic-lr-warmup-iters`` in the actor's place."""
    critic, training = config.get(CriticOptions), config.get(TrainingOptions)
    rate = training.lr if critic.critic_lr is None else critic.critic_lr
    return config.replaced(TrainingOptions, lr=rate, lr_warmup_iters=critic.critic_lr_warmup_iters, lr_warmup_fraction=None)


@dataclass
class _Rollout:
    """What is known about the rollout between :meth:`CriticTrainer.values` and :meth:`CriticTrainer.train`."""

    batch: RankBatch
    table: RowTable
    clock: Clock = field(default_factory=Clock)
    values: np.ndarray | None = None
    steps: int = 0
    tokens: int = 0


class CriticTrainer:
    """One rank of training a critic, whole rollouts at a time. All methods are collective.

    A value predicts the return from before its token on, as a log-prob is that of the token: both come from the hidden state of
    the position in front of it. Values are never divided by ``--rollout-temperature``.

    Samples, steps, micro-batches and the reduction of the loss are those of :class:`miles_core.training.trainer.Trainer`, except
    that only fully masked samples are left out of a step.

    Raises:
        UsageError: the loss needs what a critic has not (M422), or options contradict each other (M418).
    """

    def __init__(self, config: Config, backend: TrainingBackend, loss: Loss) -> None:
        if loss.needs - CRITIC_INPUTS:
            raise UsageError(
                "M422",
                f"{type(loss).__qualname__} needs {', '.join(sorted(loss.needs - CRITIC_INPUTS))}",
                owner=type(loss).__module__,
                why=f"a critic gives {', '.join(sorted(CRITIC_INPUTS))}",
                fix="choose another loss by --critic-loss-type",
            )
        training, self._algorithm = config.get(TrainingOptions), config.get(AlgorithmOptions)
        self.backend = backend
        self.loss = loss
        self._layout = training.qkv_format
        self._multiple = padding_multiple(training, backend.device)
        context = backend.parallel.context_size
        self._rule, self._scoring_rule = BinRule.training(config, context), BinRule.scoring(config, context)
        self._request = OutputRequest(log_probs=False, values=True)
        self._unstable = 0
        self._run: _Rollout | None = None

    def values(self, batch: RankBatch) -> TokenArrays | None:
        """The values of every response token before this rollout's first step; None where the backend computes no loss.

        Raises:
            RunError: one is not finite (M421).
        """
        run = self._run = _Rollout(batch, RowTable(batch.rows))
        scorer = Scorer(self.backend, run.table, self._scoring_rule, self._request, layout=self._layout, multiple=self._multiple)
        with run.clock("critic_values"):
            scored = scorer.outputs("actor")
            run.values = None if scored is None else scored["values"]
        if run.values is None:
            return None
        if not np.isfinite(run.values).all():
            raise RunError(
                "M421",
                f"rollout {batch.rollout_id}: the critic's values are not finite",
                owner=_OWNER,
                why="its weights or its checkpoint hold infinities or NaN",
                fix="resume from an earlier state with a lower --critic-lr, and check --critic-load",
            )
        return TokenArrays.of(run.table, run.values)

    def train(self, returns: Sequence[TokenArrays]) -> TrainReport:
        """Optimizer steps on the rollout of the last :meth:`values`.

        Args:
            returns: of the actor's ranks, for all samples.

        Raises:
            RunError: a sample has no returns (M420), or an invariant does not hold (M412, M416).
        """
        run, self._run = self._run, None
        assert run is not None, "values() comes first"
        table, parallel = run.table, self.backend.parallel
        fields = {"mask": table.mask, "returns": ByIndex(returns, name="returns", source="actor").flat(table.rows)}
        if run.values is not None:
            fields["old_values"] = run.values
        if self._algorithm.reset_optimizer_states:
            self.backend.reset_optimizer()
        live = table.mask_sums > 0
        steps = [[row for row in rows if live[row]] for rows in run.batch.steps]
        counts = torch.tensor([self._rule.count(table.lengths[rows].tolist()) for rows in steps], device=self.backend.device)
        agreed = reduced(counts, parallel, "max").tolist()
        metrics = [self._step(run, fields, step, rows, agreed[step]) for step, rows in enumerate(steps)]
        if parallel.computes_loss and metrics:
            metrics[0] |= self._explained(fields)
        return TrainReport(
            metrics_per_step=metrics if parallel.computes_loss else [],
            rollout_metrics={},
            skipped=run.steps == 0,
            tokens=run.tokens,
            seconds=run.clock.seconds,
            reports=parallel.reports,
        )

    def _step(self, run: _Rollout, fields: dict[str, np.ndarray], step: int, rows: list[int], count: int) -> dict[str, float]:
        if not count:
            return {f"{PREFIX}loss": 0.0} if self.backend.parallel.computes_loss else {}
        table, device = run.table, self.backend.device
        with run.clock("critic_train"):
            per_token, divisor = self._algorithm.calculate_per_token_loss, self._algorithm.loss_length_divisor
            weights = step_weights(table, run.batch.counts[step], per_token=per_token, divisor=divisor)
            bins = self._rule.bins(table.lengths[rows].tolist(), count)
            micro_batches = [
                pack(table, [rows[i] for i in members], fields | weights, layout=self._layout, multiple=self._multiple)
                for members in bins
            ]
            objective = Objective(self.loss)
            report = self.backend.train_step([batch.to(device) for batch in micro_batches], self._request, objective)
        run.steps += 1
        self._unstable = self._unstable + 1 if report.skipped else 0
        checks.check_stable(self._unstable, run.batch.rollout_id)
        return self._metrics(run, rows, objective, report) if self.backend.parallel.computes_loss else {}

    def _metrics(self, run: _Rollout, rows: list[int], objective: Objective, report: StepReport) -> dict[str, float]:
        tokens = torch.tensor(float(run.table.lengths[rows].sum()))
        totals = all_sums({**objective.terms, "trained tokens": tokens}, self.backend.parallel, self.backend.device)
        run.tokens += int(totals.pop("trained tokens"))
        metrics = {f"{PREFIX}{name}": value for name, value in totals.items()}
        metrics[f"{PREFIX}grad_norm"] = report.grad_norm
        metrics |= {f"{PREFIX}lr-pg_{i}": rate for i, rate in enumerate(report.learning_rates)}
        metrics[f"{PREFIX}skipped_step"] = float(report.skipped)
        metrics |= {f"{PREFIX}{name}": value for name, value in report.metrics.items()}
        return metrics

    def _explained(self, fields: dict[str, np.ndarray]) -> dict[str, float]:
        """The share of the returns' variance that the values explain, ``1 - Var(returns - values) / Var(returns)``.

        Over the tokens of all ranks that are trained on; nothing when their returns are all the same.
        """
        chosen = fields["mask"] != 0
        returns = fields["returns"][chosen].astype(np.float64)
        errors = returns - fields["old_values"][chosen]
        sums = {"n": float(len(returns))}
        for name, numbers in (("returns", returns), ("errors", errors)):
            sums |= {name: float(numbers.sum()), f"{name}²": float(np.square(numbers).sum())}
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items()}
        totals = all_sums(tensors, self.backend.parallel, self.backend.device)
        if not totals["n"]:
            return {}
        spread = {name: totals[f"{name}²"] / totals["n"] - (totals[name] / totals["n"]) ** 2 for name in ("returns", "errors")}
        if spread["returns"] <= _SMALLEST_SPREAD * totals["returns²"] / totals["n"]:
            return {}
        return {f"{PREFIX}explained_variance": 1.0 - spread["errors"] / spread["returns"]}
