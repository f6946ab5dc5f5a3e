"""Processes and devices, against what this machine has."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from miles_core.accelerator.vendors import usable_gpus
from miles_core.config import ClusterOptions, CriticOptions, DebugOptions
from miles_core.plugins.refs import PluginRef
from miles_core.runtime.checks.critic import critic_ranks
from miles_core.runtime.checks.report import Report
from miles_core.runtime.checks.servers import check_external_engines
from miles_core.runtime.plan import PlacementPlan
from miles_core.runtime.processors import usable_cpus


@dataclass(frozen=True)
class Machine:
    """What this machine offers, found without a GPU library."""

    cpus: int
    gpus: int

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> Machine:
        """This machine, as ``CUDA_VISIBLE_DEVICES`` or ``HIP_VISIBLE_DEVICES`` shows it."""
        return cls(usable_cpus(), usable_gpus(environment))


def check_placement(report: Report, machine: Machine) -> tuple[PlacementPlan | None, int]:
    """The placement, and the number of training ranks, which is known even when the rest is wrong."""
    cluster = report.peek(ClusterOptions)
    alone = report.peek(DebugOptions).debug_rollout_only
    trainers = 1 if alone else max(cluster.actor_num_nodes, 1) * max(cluster.actor_num_gpus_per_node, 1)
    device = _device(report, machine)
    report.derive(ClusterOptions, device=device)
    _capabilities(report, device)
    nodes = _nodes_per_engine(report)
    external = check_external_engines(report)
    attaches = report.generates and cluster.rollout_external
    engines = (len(external) or None) if attaches else _engines(report, trainers)
    offload_train, offload_rollout = _offload(report, bool(engines))
    communication = _communication(report, device)
    if engines is None:
        return None, trainers
    per_engine = max(cluster.rollout_num_gpus_per_engine, 1)
    plan = PlacementPlan(
        device=device,
        trainers=0 if alone else trainers,
        engines=engines,
        devices_per_engine=per_engine,
        colocate=cluster.colocate and engines > 0 and not external,
        offload_train=offload_train,
        offload_rollout=offload_rollout,
        communication=communication,
        engine_port=cluster.rollout_engine_port,
        critics=critic_ranks(report),
        external=external,
        nodes_per_engine=nodes,
    )
    _room(report, plan, machine)
    _ports(report, plan)
    report.use(
        ClusterOptions,
        *("device", "actor_num_nodes", "actor_num_gpus_per_node", "rollout_num_gpus", "rollout_num_gpus_per_engine"),
        *(
            "rollout_engine_port",
            "num_gpus_per_node",
            "colocate",
            "offload",
            "offload_train",
            "offload_rollout",
            "distributed_backend",
            "rollout_external",
            "rollout_external_engine_addrs",
        ),
    )
    return plan, trainers


def _device(report: Report, machine: Machine) -> str:
    cluster = report.peek(ClusterOptions)
    if cluster.device != "auto":
        if cluster.device == "cuda" and machine.gpus == 0 and cluster.ray_address is None:
            said = report.said(ClusterOptions, "device")
            why = "this machine shows no GPU (driver files, CUDA_VISIBLE_DEVICES)"
            report.error("M222", f"{said} cannot be had", why=why, fix="take --device cpu, or check the driver")
        return cluster.device
    plugins = _workers(report)
    capable = all("cuda" in ref.capabilities for ref in plugins)
    only = plugins and not any("cpu" in ref.capabilities for ref in plugins)
    return "cuda" if capable and (machine.gpus > 0 or only) else "cpu"


def _workers(report: Report) -> list[PluginRef]:
    """The plugins whose processes take devices."""
    own = report.generates and not report.peek(ClusterOptions).rollout_external
    refs = (report.selection.backend, report.selection.engine if own else None)
    return [ref for ref in refs if ref is not None]


def _capabilities(report: Report, device: str) -> None:
    for ref in _workers(report):
        if device not in ref.capabilities:
            has = ", ".join(sorted({"cpu", "cuda"} & ref.capabilities)) or "neither cpu nor cuda"
            report.error(
                "M220",
                f"the {ref.kind} plugin {ref.name!r} does not run on {device}",
                owner=f"{ref.distribution} {ref.version}",
                why=f"it offers {has}",
                fix=f"choose another {ref.kind} plugin, or another --device",
            )


def _engines(report: Report, trainers: int) -> int | None:
    cluster = report.peek(ClusterOptions)
    per_engine = cluster.rollout_num_gpus_per_engine
    if not report.generates:
        return 0
    if per_engine < 1:
        return None
    if cluster.colocate:
        if cluster.rollout_num_gpus not in (None, trainers) and report.chosen(ClusterOptions, "rollout_num_gpus"):
            said = report.said(ClusterOptions, "rollout_num_gpus")
            report.warn(f"{said} is not used: with --colocate the engines have the actor's {trainers}")
        report.derive(ClusterOptions, rollout_num_gpus=trainers)
        total = trainers
    elif cluster.rollout_num_gpus is None:
        fix = "give the number of GPUs for generation, or --colocate to share the actor's"
        report.error("M208", "--rollout-num-gpus is missing", why="engines need a place", fix=fix)
        return None
    else:
        total = cluster.rollout_num_gpus
    if total < 1:
        return None
    if total % per_engine:
        whose = "the actor's" if cluster.colocate else "--rollout-num-gpus"
        report.error(
            "M219",
            f"{report.said(ClusterOptions, 'rollout_num_gpus_per_engine')} does not divide {whose} {total}",
            why=f"{total} % {per_engine} = {total % per_engine}",
            fix=f"take {total - total % per_engine or per_engine} or {total + per_engine - total % per_engine} GPUs for generation",
        )
        return None
    return total // per_engine


def _nodes_per_engine(report: Report) -> int:
    """Nodes that each engine of the run's own is on, in equal parts."""
    cluster, engine = report.peek(ClusterOptions), report.selection.engine
    size, node = cluster.rollout_num_gpus_per_engine, cluster.num_gpus_per_node
    if not report.generates or cluster.rollout_external or engine is None or size <= node or node < 1:
        return 1
    said, nodes = report.said(ClusterOptions, "rollout_num_gpus_per_engine"), report.said(ClusterOptions, "num_gpus_per_node")
    if "several_nodes" not in engine.capabilities:
        what = f"the engine plugin {engine.name!r} cannot have {said}, more than {nodes}"
        why, fix = "its engines do not span nodes", "lower it, or choose another engine"
        report.error("M534", what, owner=f"{engine.distribution} {engine.version}", why=why, fix=fix)
        return 1
    if size % node:
        why = "an engine over several nodes has every GPU of each"
        report.error(
            "M534", f"{said} is no multiple of {nodes}", why=why, fix=f"take {size - size % node} or {size + node - size % node}"
        )
        return 1
    if cluster.ray_address is None:
        what = f"{said} does not fit {nodes}"
        fix = "give --ray-address of a cluster with several nodes, or lower it"
        report.error("M534", what, why="a local cluster has one node", fix=fix)
        return 1
    return size // node


def _offload(report: Report, engines: bool) -> tuple[bool, bool]:
    """Whether each side makes room for the other. An explicit ``--offload-...`` or ``--no-offload-...`` wins."""
    cluster = report.peek(ClusterOptions)
    engines = engines and not cluster.rollout_external
    default = engines and (cluster.colocate or cluster.offload)
    train, rollout = (default if v is None else v and engines for v in (cluster.offload_train, cluster.offload_rollout))
    report.derive(ClusterOptions, offload_train=train, offload_rollout=rollout)
    return train, rollout


def _communication(report: Report, device: str) -> str:
    cluster = report.peek(ClusterOptions)
    if device == "cuda" or cluster.distributed_backend == "gloo":
        return cluster.distributed_backend
    if report.chosen(ClusterOptions, "distributed_backend"):
        said = report.said(ClusterOptions, "distributed_backend")
        report.error("M221", f"{said} does not work on CPU", why="nccl moves GPU memory", fix="leave it out, or take gloo")
    report.derive(ClusterOptions, distributed_backend="gloo")
    return "gloo"


def _ports(report: Report, plan: PlacementPlan) -> None:
    """The engines' ports are free on this machine; on another cluster the engine itself finds out."""
    cluster = report.peek(ClusterOptions)
    first = cluster.rollout_engine_port
    if first is None or plan.external or cluster.ray_address is not None:
        return
    said = report.said(ClusterOptions, "rollout_engine_port")
    last = first + max(plan.engines, 1) - 1
    if not 1 <= first <= last <= 65535:
        why = f"{plan.engines} engines take ports {first} to {last}"
        report.error("M209", f"{said} is out of range", why=why, fix=f"give 1 to {65536 - max(plan.engines, 1)}")
        return
    for rank in range(plan.engines):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As the server does: a port that only waits for the last packets of a closed connection is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", first + rank))
            except OSError as error:
                why = f"port {first + rank}, of engine {rank}, {_reason(error)}"
                report.error("M224", f"{said} cannot be had", why=why, fix="give another port, or leave the option out")


def _reason(error: OSError) -> str:
    return "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"


def _room(report: Report, plan: PlacementPlan, machine: Machine) -> None:
    """A local cluster has this machine only; what another cluster has is known when the run has joined it."""
    cluster = report.peek(ClusterOptions)
    if cluster.ray_address is not None:
        return
    if cluster.actor_num_nodes > 1:
        said = report.said(ClusterOptions, "actor_num_nodes")
        fix = "give --ray-address of a cluster, or leave the option out"
        report.error("M218", f"{said} does not fit", why="a local cluster has one node", fix=fix)
        return
    if plan.critics and (report.peek(CriticOptions).critic_num_nodes or 1) > 1:
        said = report.said(CriticOptions, "critic_num_nodes")
        fix = "give --ray-address of a cluster, or leave the option out"
        report.error("M218", f"{said} does not fit", why="a local cluster has one node", fix=fix)
        return
    if plan.device == "cuda" and cluster.actor_num_gpus_per_node > cluster.num_gpus_per_node:
        said, node = (report.said(ClusterOptions, name) for name in ("actor_num_gpus_per_node", "num_gpus_per_node"))
        report.error("M218", f"{said} does not fit", why=f"a node has {node}", fix="change one of them")
        return
    have, what = (machine.gpus, "GPUs") if plan.device == "cuda" else (machine.cpus, "CPUs")
    if plan.device == "cuda" and machine.gpus == 0:
        if not report.chosen(ClusterOptions, "device"):
            why = "the selected plugins run on GPUs only, and this machine shows none (driver files, CUDA_VISIBLE_DEVICES)"
            fix = "choose plugins that run on CPU, or check the driver"
            report.error("M222", f"the run takes {plan.devices} GPUs", why=why, fix=fix)
        return
    if plan.devices <= have:
        return
    parts = [f"{plan.trainers} for training (--actor-num-gpus-per-node)"]
    if plan.critics:
        shared = " on the same devices" if plan.colocate else ""
        parts.append(f"{plan.critics} for the critic{shared} (--critic-num-gpus-per-node)")
    if plan.engines and not plan.colocate and not plan.external:
        parts.append(f"{plan.engines * plan.devices_per_engine} for generation (--rollout-num-gpus)")
    unit = "one worker per CPU" if plan.device == "cpu" else "one rank per GPU"
    fix = f"lower {'those' if len(parts) > 1 else '--actor-num-gpus-per-node'} to {have} in all"
    if plan.engines and not plan.colocate and max(plan.trainers, plan.critics) <= have:
        fix += ", or take --colocate"
    why = f"{', '.join(parts[:-1])}{' and ' if parts[:-1] else ''}{parts[-1]}, {unit}; this machine has {have}"
    report.error("M218", f"the run takes {plan.devices} {what}", why=why, fix=fix)
