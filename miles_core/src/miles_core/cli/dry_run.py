"""What ``miles run --dry-run`` prints: the plan of a run."""

from __future__ import annotations

from miles_core.config import DataOptions, DebugOptions, EvaluationOptions, LoopOptions, TrainingOptions
from miles_core.plugins.refs import PluginRef
from miles_core.runtime.plan import PlacementPlan, RunPlan
from miles_core.runtime.planning import Planned

_LABEL = 12


def describe(planned: Planned) -> str:
    """The plan on one screen: plugins, processes, batch arithmetic, data, checkpoints."""
    plan = planned.require()
    parts = [
        ("plugins", _plugins(plan)),
        ("processes", _processes(plan)),
        ("batch", _batch(planned, plan)),
        ("loop", [_loop(planned)]),
        ("data", _data(planned)),
        ("checkpoint", _checkpoint(plan)),
        ("run folder", [str(plan.run_dir)]),
    ]
    lines = []
    for label, rows in parts:
        lines += [f"{label if i == 0 else '':<{_LABEL}}{row}" for i, row in enumerate(rows)]
    return "\n".join(lines)


def _plugins(plan: RunPlan) -> list[str]:
    p = plan.plugins
    refs = [p.backend, p.engine, p.algo, p.advantage, p.loss, p.critic_loss, p.reward, *p.filters, *p.loggers, *p.hooks]
    return [f"{ref.kind:<10} {ref.name:<24} {_version(ref)}" for ref in refs if ref is not None]


def _version(ref: PluginRef) -> str:
    return f"{ref.distribution} {ref.version}" if ref.distribution else f"function {ref.create}"


def _processes(plan: RunPlan) -> list[str]:
    placement = plan.placement
    unit = "GPU" if placement.device == "cuda" else "CPU worker"
    rows = (
        [f"{_count(placement.trainers, 'training rank')}, one {unit} each, {placement.communication}"] if placement.trainers else []
    )
    if placement.critics:
        where = "on the same devices, in turn" if placement.colocate else "on devices of their own"
        rows.append(f"{_count(placement.critics, 'critic rank')}, {where}")
    if placement.engines:
        nodes = f" on {placement.nodes_per_engine} nodes" if placement.nodes_per_engine > 1 else ""
        where = "on the same devices, in turn" if placement.colocate else "on devices of their own"
        rows.append(
            f"{_count(placement.engines, 'engine')} of {_count(placement.devices_per_engine, unit)}{nodes}, "
            f"{where}{_offload(placement)}"
        )
    if plan.plugins.router is not None:
        middlewares = [ref.name for ref in plan.plugins.middlewares]
        beside = f", with {' and '.join(middlewares)}" if middlewares else ""
        rows.append(f"1 router ({plan.plugins.router.name}) in front of the engines{beside}")
    rows.append(f"1 rollout manager, 1 driver; {_count(placement.devices, unit)} in all")
    return rows


def _offload(placement: PlacementPlan) -> str:
    sides = [name for name, on in (("trainer", placement.offload_train), ("engine", placement.offload_rollout)) if on]
    return f" ({' and '.join(sides)} make{'' if len(sides) > 1 else 's'} room)" if sides else ""


def _batch(planned: Planned, plan: RunPlan) -> list[str]:
    batch = plan.batch
    training = planned.config.peek(TrainingOptions)
    per_rank = batch.global_batch_size // max(plan.placement.trainers, 1)
    micro = (
        f"up to {training.max_tokens_per_gpu} tokens"
        if training.use_dynamic_batch_size
        else _count(training.micro_batch_size, "sample")
    )
    samples = batch.rollout_batch_size * batch.n_samples
    product = f"{_count(batch.rollout_batch_size, 'prompt')} x {_count(batch.n_samples, 'response')}"
    return [
        f"{product} = {_count(samples, 'sample')} a rollout",
        f"{_count(batch.steps_per_rollout, 'optimizer step')} of {_count(batch.global_batch_size, 'sample')},"
        f" {per_rank} a rank, in micro-batches of {micro}",
        f"{_count(batch.num_rollout, 'rollout')}, {_count(batch.train_steps, 'optimizer step')}{_critic_only(plan)}",
    ]


def _loop(planned: Planned) -> str:
    options = planned.config.peek(LoopOptions)
    says = {
        "sync": "generates and trains in turn",
        "one-step": "generates the next rollout while this one is trained on",
        "async": f"generates all the time, at most {_count(options.max_staleness, 'version')} ahead",
    }
    every = options.update_weights_interval
    return f"{options.loop}: {says[options.loop]}; new weights every {'rollout' if every == 1 else _count(every, 'rollout')}"


def _critic_only(plan: RunPlan) -> str:
    first, every = plan.batch.critic_only_rollouts, plan.batch.critic_steps
    if not plan.placement.critics:
        return ""
    alone = f", alone in the first {_count(first, 'rollout')}" if first else ""
    return f" of the actor, {every} of the critic{alone}"


def _data(planned: Planned) -> list[str]:
    data, replayed = planned.config.peek(DataOptions), planned.config.peek(DebugOptions).load_debug_rollout_data
    if replayed is not None:
        return [f"saved rollouts: {replayed}"]
    rows = [f"{data.prompt_data}: {_count(planned.prompt_rows or 0, 'row')}, before prompts that are too long are dropped"]
    if planned.eval_rows:
        interval = planned.config.peek(EvaluationOptions).eval_interval
        sets = ", ".join(f"{name} ({_count(count, 'row')})" for name, count in planned.eval_rows.items())
        rows.append(f"evaluation every {_count(interval or 0, 'rollout')}: {sets}")
    return rows


def _checkpoint(plan: RunPlan) -> list[str]:
    resume = f"resumes from {plan.resume_from}" if plan.resume_from else "starts fresh"
    return [str(plan.checkpoint), resume]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
