"""What a run did, in a few lines, at its end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from miles_core.loggers.figures import EXPLAINED_VARIANCE, REWARD, VALUE_LOSS, duration, evaluations, short
from miles_core.runtime.plan import critic_folder

if TYPE_CHECKING:
    from miles_core.config import CheckpointOptions
    from miles_core.runtime.loop import History
    from miles_core.runtime.plan import RunPlan

FILE = "summary.txt"
RECENT = 10
_PHASES = {
    "start": "start-up",
    "rollout": "generation",
    "offload": "moving",
    "train": "training",
    "publish": "publishing",
    "save": "saving",
    "evaluate": "evaluation",
}
_WRITTEN = (
    ("metrics.jsonl", "every metric"),
    ("samples", "prompts, responses and rewards"),
    ("config.yaml", "every option; run it again with --config"),
    ("plugins.lock.json", "the distributions that ran"),
    ("logs", "one log per process"),
)


def write_summary(plan: RunPlan, history: History, checkpoint: CheckpointOptions, seconds: float) -> None:
    """Show the summary and write it to ``summary.txt`` in the run folder."""
    text = summary(plan, history, checkpoint, seconds)
    (plan.run_dir / FILE).write_text(text, encoding="utf-8")
    sys.stdout.write("\n" + text)
    sys.stdout.flush()


def summary(plan: RunPlan, history: History, checkpoint: CheckpointOptions, seconds: float) -> str:
    """The summary: what ran, how long each phase took, what was learned, and where everything is."""
    lines = [f"Finished {history.rollouts} rollouts in {duration(seconds)}", ""]
    lines += [f"  {label:11} {text}" for label, text in _what(plan)]
    lines += ["", *_times(history.seconds, seconds)]
    learned = [*_reward(history.metrics), *_critic(history.metrics), *_evaluation(history.metrics)]
    if learned:
        lines += ["", *learned]
    lines += ["", "  written to"]
    lines += [f"    {path!s:{_width(plan, checkpoint)}}  {what}" for path, what in _places(plan, checkpoint)]
    lines += ["", f"  as a page: miles report {shlex.quote(str(plan.run_dir))}"]
    return "\n".join(lines) + "\n"


def _what(plan: RunPlan) -> list[tuple[str, str]]:
    plugins, batch, placement = plan.plugins, plan.batch, plan.placement
    names = [plugins.loss.name] if plugins.supervised or plugins.advantage is None else [plugins.advantage.name, plugins.loss.name]
    if plugins.algo is not None:
        names = [plugins.algo.name]
    rows = [("algorithm", " + ".join(names) + (f", reward {plugins.reward.name}" if plugins.reward is not None else ""))]
    rows.append(("model", str(plan.checkpoint)))
    trainers = f"{plugins.backend.name} on {placement.trainers} {placement.device} rank{_s(placement.trainers)}"
    if placement.critics:
        trainers += f", critic on {placement.critics}"
    if plugins.engine is not None and placement.engines:
        where = ", colocated" if placement.colocate else ""
        trainers += f"; {placement.engines} x {plugins.engine.name}{where}"
    rows.append(("processes", trainers))
    samples = f" x {batch.n_samples} samples" if batch.n_samples > 1 else ""
    steps = f"{batch.steps_per_rollout} optimizer step{_s(batch.steps_per_rollout)} of {batch.global_batch_size}"
    rows.append(("batch", f"{batch.rollout_batch_size} prompts{samples}, {steps}"))
    return rows


def _times(phases: Mapping[str, float], total: float) -> list[str]:
    rows = [(_PHASES.get(name, name), spent) for name, spent in phases.items() if spent > 0]
    rows.sort(key=lambda row: -row[1])
    other = total - sum(spent for _, spent in rows)
    if other > 0.005 * total:
        rows.append(("other", other))
    lines = []
    for i, (name, spent) in enumerate(rows):
        share = spent / total if total else 0.0
        bar = "█" * round(30 * share)
        lines.append(f"  {'time' if i == 0 else '':11} {name:11} {duration(spent):>12}  {100 * share:4.0f} %  {bar}".rstrip())
    return lines


def _reward(metrics: Mapping[str, Sequence[tuple[int, float]]]) -> list[str]:
    points = metrics.get(REWARD, ())
    if not points:
        return []
    recent = [value for _, value in points[-RECENT:]]
    first, last = points[0], points[-1]
    text = f"{short(first[1])} (rollout {first[0]}) -> {short(last[1])} (rollout {last[0]})"
    if len(points) > RECENT:
        text += f", mean of the last {RECENT}: {short(sum(recent) / len(recent))}"
    return [f"  {'reward':11} {text}"]


def _critic(metrics: Mapping[str, Sequence[tuple[int, float]]]) -> list[str]:
    """What a critic learned, from its first to its last optimizer step."""
    found = []
    for name, label in ((VALUE_LOSS, "value loss"), (EXPLAINED_VARIANCE, "explained variance of the returns")):
        points = metrics.get(name, ())
        if points:
            found.append(f"{label} {short(points[0][1])} -> {short(points[-1][1])}")
    return [f"  {'critic':11} {', '.join(found)}"] if found else []


def _evaluation(metrics: Mapping[str, Sequence[tuple[int, float]]]) -> list[str]:
    sets = evaluations(dict.fromkeys(metrics, 0.0))
    if not sets:
        return []
    width = max(len(name) for name in sets)
    if all(len(metrics[f"eval/{name}"]) == 1 for name in sets):
        rows = [f"{name:{width}} {metrics[f'eval/{name}'][0][1]:>9.3f}" for name in sets]
        return [f"  {'evaluation' if i == 0 else '':11} {row}" for i, row in enumerate(rows)]
    lines = [f"  {'evaluation':11} {'':{width}} {'before':>9} {'after':>9} {'change':>9}"]
    for name in sets:
        points = metrics[f"eval/{name}"]
        before, after = points[0][1], points[-1][1]
        change = f"{after - before:+.3f}" if len(points) > 1 else "-"
        lines.append(f"  {'':11} {name:{width}} {before:>9.3f} {after:>9.3f} {change:>9}")
    steps = metrics[f"eval/{next(iter(sets))}"]
    lines[0] += f"   (after {steps[0][0]} and {steps[-1][0]} rollouts)"
    return lines


def _places(plan: RunPlan, checkpoint: CheckpointOptions) -> list[tuple[Path, str]]:
    rows = [(plan.run_dir / name, what) for name, what in _WRITTEN if (plan.run_dir / name).exists()]
    if checkpoint.save:
        rows.append((Path(checkpoint.save), "run states; go on with --load"))
    if checkpoint.save_hf:
        rows.append((Path(checkpoint.save_hf), "the model, in Hugging Face format"))
        if plan.placement.critics:
            rows.append((critic_folder(Path(checkpoint.save_hf)), "the critic, in the same format"))
    return rows


def _width(plan: RunPlan, checkpoint: CheckpointOptions) -> int:
    return max((len(str(path)) for path, _ in _places(plan, checkpoint)), default=0)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
