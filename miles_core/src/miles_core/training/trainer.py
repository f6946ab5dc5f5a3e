"""Training on one rollout, for every backend."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import torch

from miles_core.config import AlgorithmOptions, RolloutOptions, RoutingOptions, TeacherOptions, TrainingOptions
from miles_core.debug.watch import TrainingWatch
from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.protocols.advantage import Advantage, AdvantageInputs
from miles_core.protocols.backend import OutputRequest, StepReport, TrainingBackend
from miles_core.protocols.loss import Loss
from miles_core.training import checks, mismatch
from miles_core.training.metrics import rollout_metrics
from miles_core.training.objective import COMPARED, SAMPLE_WEIGHT, Objective, step_weights
from miles_core.training.pack import pack, padding_multiple
from miles_core.training.passes import Scorer
from miles_core.training.plan import BinRule
from miles_core.training.postprocess import PostProcess, postprocess
from miles_core.training.reduce import all_sums, reduced, row_counts, sample_weights
from miles_core.training.report import Clock, TrainReport
from miles_core.training.routing import Routes
from miles_core.training.rows import RankBatch
from miles_core.training.table import RowTable
from miles_core.training.whitening import whitened

_log = logging.getLogger(__name__)


@dataclass
class Rollout:
    """What is known about the rollout that is being trained on.

    ``fields`` holds flat per-token arrays, ``[N + 1]``, by field name of ``LossInputs``.
    """

    batch: RankBatch
    table: RowTable
    clock: Clock = field(default_factory=Clock)
    fields: dict[str, np.ndarray] = field(default_factory=dict)
    routes: Routes | None = None
    compared: bool = False
    steps: int = 0
    tokens: int = 0
    log_prob_sum: tuple[float, float] = (0.0, 0.0)
    difference: dict[str, float] = field(default_factory=dict)


class Trainer:
    """One rank of training, whole rollouts at a time. All methods are collective.

    Log-probs of the weights before the rollout's first optimizer step are computed in a pass of their own when the rollout has
    several steps, or when the estimator or ``function`` needs them; else those of the only step's forward pass serve. With
    ``--use-routing-replay`` that pass is always made: it records the experts that every optimizer step then uses.

    A sample whose loss and gradient are exactly 0 is left out of an optimizer step and stays in its denominators: a fully masked
    one, and one with zero advantages everywhere if the loss says ``zero_advantage_is_zero_loss`` (and the estimator needs no
    model outputs, so that every rank can tell). A step for which no rank has a sample left is not made: weights, optimizer
    state and learning-rate schedule stay as they are, so that a run resumed behind it goes on like one that was never stopped.

    Args:
        function: what ``--rollout-data-postprocess-path`` names, see :mod:`miles_core.training.postprocess`.
        watch: what looks into the training, see :mod:`miles_core.debug.watch`.

    Raises:
        UsageError: loss or estimator need what there is not (M410), or options contradict each other (M418).
    """

    def __init__(
        self,
        config: Config,
        backend: TrainingBackend,
        loss: Loss,
        advantage: Advantage | None,
        function: PostProcess | None = None,
        watch: TrainingWatch | None = None,
    ) -> None:
        checks.check_needs(loss, advantage)
        training, rollout = config.get(TrainingOptions), config.get(RolloutOptions)
        if not rollout.rollout_temperature > 0:
            raise UsageError(
                "M418",
                f"--rollout-temperature {rollout.rollout_temperature:g} cannot be trained with",
                owner="miles-core",
                why="training divides the logits by it",
                fix="set it above 0",
            )
        self.backend = backend
        self.loss = loss
        self.advantage = advantage
        self._needs = loss.needs | (advantage.needs if advantage is not None else frozenset())
        self._teacher_here = config.get(TeacherOptions).teacher_load is not None
        routing = config.get(RoutingOptions)
        self._rollout_routes = routing.use_rollout_routing_replay
        self._records_routes = routing.use_routing_replay and not self._rollout_routes
        self._algorithm = config.get(AlgorithmOptions)
        self._per_token = self._algorithm.calculate_per_token_loss
        self._recompute = training.recompute_loss_function
        self._layout = training.qkv_format
        self._multiple = padding_multiple(training, backend.device)
        context = backend.parallel.context_size
        self._rule, self._scoring_rule = BinRule.training(config, context), BinRule.scoring(config, context)
        self._warn, self._limit = rollout.logprob_diff_warn, rollout.logprob_diff_limit
        self._exact = training.true_on_policy_mode
        self._scoring = OutputRequest(
            entropy=self._algorithm.use_rollout_entropy,
            temperature=rollout.rollout_temperature,
            chunk_size=training.log_probs_chunk_size,
        )
        self._training = OutputRequest(
            entropy="entropy" in loss.needs,
            logits="logits" in loss.needs,
            temperature=rollout.rollout_temperature,
            chunk_size=training.log_probs_chunk_size,
        )
        self._function = function
        self._watch = watch
        # A function may change advantages where a loss is computed, and all ranks must leave out the same rows.
        self._drops_zero = (
            advantage is not None
            and not advantage.needs
            and function is None
            and getattr(loss, "zero_advantage_is_zero_loss", False) is True
        )
        self._zero_metrics = checks.zero_metrics(loss) if self._drops_zero else frozenset()
        self._unstable = 0

    def train(self, batch: RankBatch) -> TrainReport:
        """Passes, advantages, optimizer steps.

        Raises:
            RunError: an invariant does not hold (M411 to M417), see :mod:`miles_core.training.checks`.
        """
        return self.finish(self.begin(batch))

    def begin(self, batch: RankBatch) -> Rollout:
        """The part before the first optimizer step: passes and advantages."""
        watch = self._watch
        run = Rollout(batch, RowTable(batch.rows), Clock() if watch is None else Clock(watch=watch.span))
        if watch is not None:
            watch.started(batch.rollout_id)
        self._prepare(run)
        self._score(run)
        self._advantages(run)
        if self._function is not None and self.backend.parallel.computes_loss:
            postprocess(self._function, run.batch.rollout_id, run.table, run.fields)
        if watch is not None:
            watch.begun(run)
        return run

    def finish(self, run: Rollout, *, steps: bool = True) -> TrainReport:
        """The optimizer steps on what :meth:`begin` gave, unless there are to be none, and the report."""
        parallel, device = self.backend.parallel, self.backend.device
        if steps and self._algorithm.reset_optimizer_states:
            self.backend.reset_optimizer()
        plan = self._plan(run) if steps else []
        metrics = [self._step(run, step, rows, count) for step, (rows, count) in enumerate(plan)]
        self._refresh_reference(run.batch.rollout_id)
        if self._watch is not None:
            self._watch.ended()
        found = {}
        if parallel.computes_loss:
            known = "log_probs" in run.fields
            extra = self._oversize(run)
            if not known:
                extra["log_probs"] = run.log_prob_sum
            if {"old_log_probs", "teacher_log_probs"} <= run.fields.keys():
                run.fields["opd_reverse_kl"] = run.fields["old_log_probs"] - run.fields["teacher_log_probs"]
            found = rollout_metrics(run.table, run.fields, extra, parallel, device)
        return TrainReport(
            metrics_per_step=metrics if parallel.computes_loss else [],
            rollout_metrics=found,
            skipped=run.steps == 0,
            tokens=run.tokens,
            seconds=run.clock.seconds,
            reports=parallel.reports,
        )

    def _refresh_reference(self, rollout_id: int) -> None:
        interval = self._algorithm.ref_update_interval
        if interval is not None and "ref_log_probs" in self._needs and (rollout_id + 1) % interval == 0:
            self.backend.copy_weights("actor", "ref")

    def _oversize(self, run: Rollout) -> dict[str, tuple[float, float]]:
        """Samples above the token cap, which train alone; all ranks' sum over 1."""
        if self._rule.cap is None:
            return {}
        found = self._rule.oversize(run.table.lengths[:-1].tolist())
        if found:
            _log.warning("rollout %d: %d samples are longer than --max-tokens-per-gpu", run.batch.rollout_id, found)
        return {"oversize_samples": (float(found), 1.0 / self.backend.parallel.data_size)}

    def _prepare(self, run: Rollout) -> None:
        table = run.table
        run.fields |= {"mask": table.mask, SAMPLE_WEIGHT: sample_weights(table)}
        has = np.array([row.rollout_log_probs is not None for row in table.rows] + [True])
        from_engine = table.rollout_log_probs()
        if "rollout_log_probs" in self.loss.needs:
            checks.check_rollout_log_probs(type(self.loss).__qualname__, from_engine, table.mask)
        if from_engine is not None:
            run.fields["rollout_log_probs"] = from_engine
            run.fields[COMPARED] = table.mask * np.repeat(has, table.response_lengths)

    def _score(self, run: Rollout) -> None:
        """Reference and old log-probs, where needed."""
        scorer = Scorer(self.backend, run.table, self._scoring_rule, self._scoring, layout=self._layout, multiple=self._multiple)
        if "ref_log_probs" in self._needs:
            with run.clock("ref_log_probs"):
                reference = scorer.outputs("ref")
            if reference is not None:
                run.fields |= {f"ref_{name}": values for name, values in reference.items()}
        if "teacher_log_probs" in self._needs:
            self._score_teacher(run, scorer)
        if "values" in self._needs:
            run.fields["values"] = run.table.extra("values")
        if self._rollout_routes:
            run.routes = Routes.of_rollout(run.table)
        if self._algorithm.use_rollout_logprobs:
            checks.check_rollout_log_probs("--use-rollout-logprobs", run.fields.get("rollout_log_probs"), run.table.mask)
            run.fields["old_log_probs"] = run.fields["rollout_log_probs"]
        if not self._scores_actor(len(run.batch.steps)):
            return
        weights = "old_actor" if self._algorithm.keep_old_actor else "actor"
        with run.clock("log_probs"):
            if self._records_routes:
                old, run.routes = scorer.recorded(weights)
            else:
                old = scorer.outputs(weights, run.routes)
        if old is not None:
            run.fields |= {"log_probs": old["log_probs"]} | {f"old_{name}": old[name] for name in old.keys() - {"log_probs"}}
            run.fields.setdefault("old_log_probs", old["log_probs"])
            self._compare_pass(run, old["log_probs"])

    def _scores_actor(self, steps: int) -> bool:
        """Whether the old policy's log-probs take a pass of their own."""
        options, by_estimator = self._algorithm, self.advantage is not None and "old_log_probs" in self.advantage.needs
        if options.use_rollout_entropy or self._records_routes or self._function is not None:
            return True
        if self._watch is not None and self._watch.wants_log_probs:
            return True
        if options.use_rollout_logprobs:
            return False
        return by_estimator or ("old_log_probs" in self.loss.needs and (steps > 1 or options.keep_old_actor))

    def _score_teacher(self, run: Rollout, scorer: Scorer) -> None:
        """The teacher's log-probs of the policy's tokens: of a model here, or what the rows bring from a server."""
        if self._teacher_here:
            with run.clock("teacher_log_probs"):
                scored = scorer.outputs("teacher")
            teacher = None if scored is None else scored["log_probs"]
        else:
            teacher = run.table.extra("teacher_log_probs")
        if teacher is not None:
            run.fields["teacher_log_probs"] = teacher

    def _compare_pass(self, run: Rollout, old: np.ndarray) -> None:
        found = None
        if COMPARED in run.fields:
            train, rollout, compared = (
                torch.from_numpy(values[:-1]) for values in (old, run.fields["rollout_log_probs"], run.fields[COMPARED])
            )
            found = mismatch.sums(train, rollout, compared, run.table.response_lengths[:-1].tolist())
        self._compare(run, found)

    def _compare(self, run: Rollout, found: dict[str, torch.Tensor] | None) -> None:
        """Rollout against training log-probs, over all ranks."""
        run.compared = True
        parallel, device = self.backend.parallel, self.backend.device
        zero, nothing = torch.zeros((), dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
        totals = all_sums({name: found[name] if found else zero for name in mismatch.NAMES}, parallel, device)
        most = (found["largest"] if found else nothing).to(device).reshape(1)
        run.difference = mismatch.metrics(totals, float(reduced(most, parallel, "max").item()))
        if run.difference:
            checks.check_difference(
                run.difference["train/train_rollout_logprob_abs_diff"],
                run.difference["train/train_rollout_logprob_abs_diff_max"],
                warn=self._warn,
                limit=self._limit,
                exact=self._exact,
                rollout_id=run.batch.rollout_id,
                speak=parallel.reports,
            )

    def _advantages(self, run: Rollout) -> None:
        """Advantages and returns of this rank's rows; where no loss is computed, only if they decide on rows to leave out."""
        if self.advantage is None or not (self.backend.parallel.computes_loss or self._drops_zero):
            return
        table, advantage = run.table, self.advantage
        given = {name: torch.from_numpy(run.fields[name][:-1]) for name in advantage.needs}
        mask = torch.from_numpy(table.mask[:-1])
        with run.clock("advantages"):
            outputs = advantage(
                AdvantageInputs(
                    rewards=torch.tensor([row.reward for row in table.rows], dtype=torch.float32, device="cpu"),
                    mask=mask,
                    lengths=tuple(table.response_lengths[:-1].tolist()),
                    **given,
                )
            )
        checks.check_advantages(advantage, mask, outputs.advantages, outputs.returns)
        advantages = outputs.advantages.float()
        if self._algorithm.normalize_advantages:
            advantages = whitened(advantages, mask, self.backend.parallel, self.backend.device)
        for name, values in (("advantages", advantages), ("returns", outputs.returns.float())):
            run.fields[name] = np.append(values.numpy(), np.float32(0))

    def _plan(self, run: Rollout) -> list[tuple[list[int], int]]:
        """For each optimizer step, the rows to train on and the number of micro-batches, which is the same on all ranks."""
        table = run.table
        live = table.mask_sums > 0
        if self._drops_zero:
            informative = (run.fields["advantages"] != 0) & (table.mask != 0)
            live &= np.logical_or.reduceat(informative, table.response_starts)
        steps = [[row for row in rows if live[row]] for rows in run.batch.steps]
        counts = [self._rule.count(table.lengths[rows].tolist()) for rows in steps]
        agreed = reduced(torch.tensor(counts, device=self.backend.device), self.backend.parallel, "max").tolist()
        return list(zip(steps, agreed, strict=True))

    def _step(self, run: Rollout, step: int, rows: list[int], count: int) -> dict[str, float]:
        """One optimizer step, and its metrics over all ranks."""
        if not count:
            zeros = {f"train/{name}": 0.0 for name in ("loss", "trained_samples", *sorted(self._zero_metrics))}
            return zeros if self.backend.parallel.computes_loss else {}
        table, device = run.table, self.backend.device
        first = run.steps == 0
        with run.clock("data_preprocess"):
            divisor = self._algorithm.loss_length_divisor
            fields = {name: values for name, values in run.fields.items() if name != "log_probs"}
            fields |= step_weights(table, run.batch.counts[step], per_token=self._per_token, divisor=divisor)
            bins = self._rule.bins(table.lengths[rows].tolist(), count)
            packed = [
                pack(table, [rows[i] for i in members], fields, layout=self._layout, multiple=self._multiple) for members in bins
            ]
            routes = run.routes
            micro_batches = [(batch if routes is None else routes.attach(batch)).to(device) for batch in packed]
        objective = Objective(self.loss, compare=first, recompute=self._recompute)
        with run.clock("actor_train"):
            report = self.backend.train_step(micro_batches, self._training, objective)
        run.steps += 1
        self._unstable = self._unstable + 1 if report.skipped else 0
        checks.check_stable(self._unstable, run.batch.rollout_id)
        return self._metrics(run, step, rows, objective, report) if self.backend.parallel.computes_loss else {}

    def _metrics(self, run: Rollout, step: int, rows: list[int], objective: Objective, report: StepReport) -> dict[str, float]:
        table, parallel, device = run.table, self.backend.parallel, self.backend.device
        in_step = np.array(run.batch.steps[step], np.int64)
        left_out = np.setdiff1d(in_step[table.mask_sums[in_step] > 0], rows)
        local = {
            "left_out": float(row_counts(table, per_token=self._per_token)[left_out].sum()),
            "trained_samples": float(len(rows)),
            "trained_tokens": float(table.lengths[rows].sum()),
        }
        sums = {f"term {name}": value for name, value in objective.terms.items()}
        sums |= {f"gap {name}": value for name, value in objective.gaps.items() if name.startswith("old")}
        totals = all_sums(sums | {name: torch.tensor(value) for name, value in local.items()}, parallel, device)
        run.tokens += int(totals["trained_tokens"])
        counts = run.batch.counts[step]
        whole = counts.tokens if self._per_token else float(counts.samples)
        share = 1.0 - totals["left_out"] / whole
        metrics = {"train/loss": totals["term loss"], "train/trained_samples": totals["trained_samples"]}
        for name in objective.terms.keys() - {"loss"}:
            # What is not known to be 0 for the samples left out is averaged over the others.
            metrics[f"train/{name}"] = totals[f"term {name}"] / (1.0 if name in self._zero_metrics else share)
        metrics["train/grad_norm"] = report.grad_norm
        metrics |= {f"train/lr-pg_{i}": rate for i, rate in enumerate(report.learning_rates)}
        metrics["train/skipped_step"] = float(report.skipped)
        metrics |= {f"train/{name}": value for name, value in report.metrics.items()}
        if run.steps == 1:
            self._first_step(run, rows, objective, totals)
            metrics |= run.difference
        return metrics

    def _first_step(self, run: Rollout, rows: list[int], objective: Objective, totals: dict[str, float]) -> None:
        parallel, gaps = self.backend.parallel, objective.gaps
        # An old policy that is the engine's, or that an engine still serves, is not that of this step.
        elsewhere = self._algorithm.use_rollout_logprobs or self._algorithm.keep_old_actor
        if totals.get("gap old_tokens") and not elsewhere:
            checks.check_first_step(
                totals["gap old"] / totals["gap old_tokens"],
                device=self.backend.device,
                rollout_id=run.batch.rollout_id,
                speak=parallel.reports,
            )
        run.log_prob_sum = (float(gaps["log_probs"]), float(len(rows)))
        if not run.compared:
            self._compare(run, objective.mismatch)
