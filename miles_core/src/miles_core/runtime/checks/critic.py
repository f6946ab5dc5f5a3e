"""The critic of an algorithm that has one: who trains it, from what, and with which loss."""

from __future__ import annotations

import json
from pathlib import Path

from miles_core.config import AlgorithmOptions, ClusterOptions, CriticOptions, DataOptions, RolloutOptions, TrainingOptions
from miles_core.plugins.refs import PluginRef
from miles_core.runtime.checks.checkpoint import CONFIG_FILE, check_model
from miles_core.runtime.checks.report import Report
from miles_core.runtime.checks.teacher import vocab_size
from miles_core.state import SavedState

CAPABILITY = "critic"
"""Of an advantage estimator: it needs values. Of a backend: it trains a value head. Of a loss: it is one of values."""
CRITIC_FOLDER = "critic"
"""Of a run state: what the critic goes on from."""


def critic_ranks(report: Report) -> int:
    """Ranks that train the critic; 0 without one."""
    if not report.has_critic:
        return 0
    critic, cluster = report.peek(CriticOptions), report.peek(ClusterOptions)
    nodes = cluster.actor_num_nodes if critic.critic_num_nodes is None else critic.critic_num_nodes
    per_node = cluster.actor_num_gpus_per_node if critic.critic_num_gpus_per_node is None else critic.critic_num_gpus_per_node
    return max(nodes, 1) * max(per_node, 1)


def check_critic(report: Report, state: SavedState | None) -> None:
    """Check everything about the critic; without one, that no option of one is set.

    Args:
        state: the run state to go on from.
    """
    _check_losses(report)
    if not report.has_critic:
        _warn_idle(report)
        if state is not None and (state.path / CRITIC_FOLDER).is_dir():
            why = f"{state.path} was saved with a critic, which this run lacks"
            report.error("M274", "the run state is of another algorithm", why=why, fix="take the algorithm of that run")
        return
    report.use(CriticOptions, "critic_num_nodes", "critic_num_gpus_per_node", "num_critic_only_steps", "critic_loss_type")
    backend = report.selection.backend
    if backend is not None and CAPABILITY not in backend.capabilities:
        fix = "train with another backend, or choose an algorithm without a critic"
        report.error(
            "M270", f"the backend plugin {backend.name!r} cannot train a critic", owner=_owner(backend), why=_who(report), fix=fix
        )
    if report.peek(AlgorithmOptions).disable_compute_advantages_and_returns:
        said = report.said(AlgorithmOptions, "disable_compute_advantages_and_returns")
        fix = "leave it out, or choose an algorithm without a critic"
        report.error("M271", f"{said} contradicts {_who(report)}", why="a critic is trained on returns", fix=fix)
    _check_rates(report)
    _check_folder(report)
    if state is not None and not (state.path / CRITIC_FOLDER).is_dir():
        why = f"{state.path} was saved without a critic, which this run has"
        report.error("M274", "the run state is of another algorithm", why=why, fix="take the algorithm of that run")


def _check_losses(report: Report) -> None:
    """The actor's loss is none of values, the critic's is."""
    loss, critic_loss = report.selection.loss, report.selection.critic_loss
    if loss is not None and CAPABILITY in loss.capabilities:
        fix = "name another by --loss-type"
        report.error(
            "M272", f"the loss {loss.name!r} cannot train the actor", owner=_owner(loss), why="it is one of a critic", fix=fix
        )
    if critic_loss is not None and CAPABILITY not in critic_loss.capabilities:
        said = report.said(CriticOptions, "critic_loss_type")
        fix = "name another, such as value_loss"
        report.error("M272", f"{said} cannot train a critic", owner=_owner(critic_loss), why="it is no loss of values", fix=fix)


def _check_rates(report: Report) -> None:
    critic, training = report.peek(CriticOptions), report.peek(TrainingOptions)
    if critic.critic_lr is not None and training.lr_decay_style != "constant" and training.min_lr > critic.critic_lr:
        said, other = report.said(CriticOptions, "critic_lr"), report.said(TrainingOptions, "min_lr")
        report.error("M271", f"{said} is below {other}", why="a decay goes down", fix="lower --min-lr")
    rollouts = report.peek(DataOptions).num_rollout
    if rollouts is not None and 0 < rollouts <= critic.num_critic_only_steps:
        said = report.said(CriticOptions, "num_critic_only_steps")
        report.warn(f"{said} is the whole run of {rollouts} rollouts: the actor is not trained")


def _check_folder(report: Report) -> None:
    folder = report.peek(CriticOptions).critic_load
    if folder is None:
        return
    said = report.said(CriticOptions, "critic_load")
    config = check_model(report, Path(folder).expanduser(), said)
    checkpoint = report.peek(RolloutOptions).hf_checkpoint
    if config is None or checkpoint is None:
        return
    try:
        policy = json.loads((Path(checkpoint).expanduser() / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # check_checkpoint has said so
    sizes = vocab_size(policy), vocab_size(config)
    if sizes[0] is not None and sizes[1] is not None and sizes[0] > sizes[1]:
        report.error(
            "M273",
            f"{said} has a smaller vocabulary than the policy",
            owner=str(Path(folder) / CONFIG_FILE),
            why=f"it reads {sizes[1]} tokens and the policy can sample {sizes[0]}",
            fix="take a critic whose vocab_size is at least the policy's",
        )


def _warn_idle(report: Report) -> None:
    estimator = report.selection.advantage
    if estimator is None and not report.supervised:
        return  # it failed to load, and may have needed one
    why = (
        "a supervised run has no critic" if report.supervised or estimator is None else f"advantage {estimator.name} has no critic"
    )
    for option, value in report.config.items():
        if option.group is CriticOptions and report.chosen(CriticOptions, option.field) and value.value != option.default:
            report.warn(f"{option.flag} ({value.place}) has no effect: {why}")


def _who(report: Report) -> str:
    estimator = report.selection.advantage
    assert estimator is not None
    return f"advantage {estimator.name}, which needs a critic"


def _owner(ref: PluginRef) -> str:
    return f"{ref.distribution} {ref.version}"
