"""Devices, engines, offloading and communication."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from miles_core.config import ClusterOptions
from miles_core.options import Source
from miles_core.runtime.checks.placement import Machine

SIZE = "--rollout-num-gpus-per-engine"
GPUS = Machine(cpus=8, gpus=4)


def test_colocated_on_cpu(cli) -> None:
    planned = cli.plan(cli.valid)
    found = planned.plan.placement
    assert (found.device, found.trainers, found.engines, found.devices, found.communication) == ("cpu", 2, 2, 2, "gloo")
    assert (found.colocate, found.offload_train, found.offload_rollout) == (True, True, True)
    cluster = planned.config.peek(ClusterOptions)
    assert (cluster.device, cluster.rollout_num_gpus, cluster.distributed_backend) == ("cpu", 2, "gloo")
    assert planned.config.value(ClusterOptions, "distributed_backend").source is Source.DERIVED


def test_disaggregated_on_gpus(cli) -> None:
    planned = cli.plan(cli.but("--rollout-num-gpus 2", "--rollout-num-gpus-per-engine 2", drop=["--colocate"]), GPUS)
    found = planned.plan.placement
    assert (found.device, found.trainers, found.engines, found.devices_per_engine, found.devices) == ("cuda", 2, 1, 2, 4)
    assert (found.offload_train, found.offload_rollout, found.communication) == (False, False, "nccl")


@pytest.mark.parametrize(
    ("changes", "train", "rollout"),
    [
        ([], True, True),
        (["--no-offload-train"], False, True),
        (["--no-offload-rollout", "--no-offload-train"], False, False),
        (["--offload", "--no-offload-train"], False, True),
    ],
)
def test_an_explicit_offload_wins(cli, changes: list[str], train: bool, rollout: bool) -> None:
    found = cli.plan(cli.but(*changes)).plan.placement
    assert (found.offload_train, found.offload_rollout) == (train, rollout)


def test_offload_without_colocation(cli) -> None:
    apart = cli.but("--rollout-num-gpus 1", "--offload", drop=["--colocate"])
    found = cli.plan(apart).plan.placement
    assert (found.offload_train, found.offload_rollout) == (True, True)
    found = cli.plan(cli.but("--rollout-num-gpus 1", "--offload-train", drop=["--colocate"])).plan.placement
    assert (found.offload_train, found.offload_rollout) == (True, False)


@pytest.mark.parametrize(
    ("changes", "drop", "machine", "code", "parts"),
    [
        (["--actor-num-gpus-per-node 8"], [], Machine(2, 0), "M218", ["8 CPUs", "--actor-num-gpus-per-node", "has 2"]),
        (["--rollout-num-gpus 1"], ["--colocate"], Machine(2, 0), "M218", ["3 CPUs", "--rollout-num-gpus", "--colocate"]),
        (["--actor-num-gpus-per-node 8"], [], GPUS, "M218", ["8 GPUs", "has 4"]),
        (["--actor-num-nodes 2"], [], Machine(64, 0), "M218", ["--actor-num-nodes 2", "--ray-address"]),
        (["--actor-num-gpus-per-node 4", "--num-gpus-per-node 2"], [], GPUS, "M218", ["--num-gpus-per-node 2"]),
        ([], ["--colocate"], Machine(8, 0), "M208", ["--rollout-num-gpus is missing", "--colocate"]),
        (["--rollout-num-gpus-per-engine 3"], [], Machine(8, 0), "M219", ["does not divide", "2"]),
        (["--distributed-backend nccl"], [], Machine(8, 0), "M221", ["--distributed-backend nccl", "gloo"]),
        (["--device cuda"], [], Machine(8, 0), "M222", ["--device cuda", "no GPU"]),
        (["--backend gpu-only"], [], Machine(8, 0), "M222", ["GPUs only"]),
        (["--backend gpu-only", "--device cpu"], [], GPUS, "M220", ["backend plugin 'gpu-only'", "cpu", "toy 1.0"]),
        (["--rollout-num-gpus 0"], ["--colocate"], Machine(8, 0), "M209", ["--rollout-num-gpus 0"]),
        ([f"{SIZE} 2", "--num-gpus-per-node 1"], [], Machine(8, 0), "M534", ["'toy'", f"{SIZE} 2", "do not span nodes"]),
        ([f"{SIZE} 2", "--num-gpus-per-node 1", "--engine spanning"], [], Machine(8, 0), "M534", ["local cluster has one node"]),
    ],
)
def test_placements_that_do_not_work(cli, changes, drop, machine: Machine, code: str, parts: list[str]) -> None:
    if "--backend gpu-only" in changes and "--device cpu" not in changes:
        # The other worker, the toy engine, runs on CPU; alone the backend decides.
        changes = [*changes, "--loss-type imitate"]
    lines = [line for line in cli.errors(cli.but(*changes, drop=drop), machine) if not line.startswith("M211")]
    assert len(lines) == 1, lines
    assert lines[0].startswith(code)
    for part in parts:
        assert part in lines[0]


def test_a_cluster_to_join_is_not_measured_by_this_machine(cli) -> None:
    arguments = cli.but("--ray-address 10.0.0.1:6379", "--actor-num-nodes 2", "--actor-num-gpus-per-node 4")
    assert not cli.errors(arguments, Machine(1, 0))


def test_an_engine_over_several_nodes(cli) -> None:
    def chosen(node: int) -> list[str]:
        sizes = (
            "--ray-address 10.0.0.1:6379",
            "--rollout-num-gpus 24",
            f"{SIZE} 12",
            f"--num-gpus-per-node {node}",
            "--engine spanning",
        )
        return cli.but(*sizes, drop=["--colocate"])

    placement = cli.plan(chosen(4), Machine(1, 0)).plan.placement
    assert (placement.engines, placement.devices_per_engine, placement.nodes_per_engine) == (2, 12, 3)
    assert cli.plan(chosen(12), Machine(1, 0)).plan.placement.nodes_per_engine == 1
    (line,) = cli.errors(chosen(8), Machine(1, 0))
    assert line.startswith("M534")
    assert "no multiple of --num-gpus-per-node 8" in line
    assert "take 8 or 16" in line


def test_device_cpu_on_a_machine_with_gpus(cli) -> None:
    assert cli.plan(cli.but("--device cpu"), GPUS).plan.placement.device == "cpu"
    assert cli.plan(cli.valid, GPUS).plan.placement.device == "cuda"


def test_colocation_names_a_number_that_it_does_not_use(cli) -> None:
    planned = cli.plan(cli.but("--rollout-num-gpus 4"))
    assert planned.plan.placement.engines == 2
    assert any("--rollout-num-gpus 4" in line for line in planned.warnings)


@pytest.fixture
def neighbours() -> Iterator[tuple[socket.socket, int]]:
    """A socket that listens on a port, and the free port before it."""
    for port in range(21000, 29000, 2):
        with socket.socket() as free, socket.socket() as taken:
            try:
                free.bind(("127.0.0.1", port))
                taken.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            free.close()
            taken.listen()
            yield taken, port
            return
    raise AssertionError("no two neighbouring ports are free")


def test_a_port_in_use_is_a_mistake_before_anything_starts(cli, neighbours) -> None:
    taken, port = neighbours
    planned = cli.plan(cli.but(f"--rollout-engine-port {port}"))
    (error,) = planned.errors
    assert (error.code, error.exit_code) == ("M224", 2)
    assert f"port {port + 1}, of engine 1, is in use" in error.line()
    taken.close()
    assert cli.plan(cli.but(f"--rollout-engine-port {port}")).plan.placement.engine_port == port


@pytest.mark.parametrize("port", ["0", "65535", "70000", "-1"])
def test_a_port_out_of_range(cli, port: str) -> None:
    (error,) = cli.plan(cli.but(f"--rollout-engine-port={port}")).errors
    assert error.code == "M209"


def test_a_supervised_run_has_no_engines(cli) -> None:
    found = cli.plan(cli.but("--loss-type imitate", drop=["--colocate", "--rm-type"])).plan
    assert (found.placement.engines, found.placement.devices, found.placement.offload_train) == (0, 2, False)
    assert (found.plugins.engine, found.plugins.advantage, found.plugins.reward) == (None, None, None)
