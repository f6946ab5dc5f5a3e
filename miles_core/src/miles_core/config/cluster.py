"""Where the processes of a run go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from miles_core.options import option


@dataclass(frozen=True)
class ClusterOptions:
    """Cluster and resources"""

    device: str = option(
        "auto",
        flag="--device",
        choices=("auto", "cpu", "cuda"),
        help="What a 'GPU' of the options below is: an accelerator, or a CPU worker. auto takes accelerators when there are any.",
    )
    actor_num_nodes: int = option(1, flag="--actor-num-nodes", help="Nodes that train the actor.")
    actor_num_gpus_per_node: int = option(8, flag="--actor-num-gpus-per-node", help="GPUs per node that train the actor.")
    rollout_num_gpus: int | None = option(
        None, flag="--rollout-num-gpus", help="GPUs of all engines together. With --colocate this is the actor's number."
    )
    rollout_num_gpus_per_engine: int = option(
        1,
        flag="--rollout-num-gpus-per-engine",
        help="GPUs of one engine; more than --num-gpus-per-node, a multiple of it, put the engine on several nodes.",
    )
    num_gpus_per_node: int = option(8, flag="--num-gpus-per-node", help="GPUs of one node.")
    colocate: bool = option(False, flag="--colocate", help="Train and generate on the same GPUs, in turn.")
    offload: bool = option(False, flag="--offload", help="Same as --offload-train and --offload-rollout.")
    offload_train: bool | None = option(
        None, flag="--offload-train", help="Move the actor to host memory while engines generate. On with --colocate."
    )
    offload_rollout: bool | None = option(
        None, flag="--offload-rollout", help="Release the engines' memory while the actor trains. On with --colocate."
    )
    distributed_backend: str = option(
        "nccl", flag="--distributed-backend", choices=("nccl", "gloo"), help="Communication between training ranks; gloo on CPU."
    )
    distributed_timeout_minutes: int = option(
        10, flag="--distributed-timeout-minutes", help="Timeout of a collective between training ranks, in minutes."
    )
    rollout_engine_port: int | None = option(
        None,
        flag="--rollout-engine-port",
        help="Port of the first engine's HTTP server; the others take the ports that follow. Free ports when not given.",
    )
    rollout_external: bool = option(
        False,
        flag="--rollout-external",
        help="Generate on servers that run already, at --rollout-external-engine-addrs; the run starts and ends none.",
    )
    rollout_external_engine_addrs: list[str] | None = option(
        None,
        flag="--rollout-external-engine-addrs",
        metavar="HOST:PORT",
        help="Their addresses, HOST:PORT or [IPV6]:PORT, one for each engine.",
    )
    train_env_vars: dict[str, Any] = option(
        {}, flag="--train-env-vars", help="JSON object of environment variables for the processes that train, actor and critic."
    )
    ray_address: str | None = option(None, flag="--ray-address", help="Ray cluster to join; a local one is started when not given.")
