"""The critic of algorithms that have one."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class CriticOptions:
    """Critic"""

    critic_num_nodes: int | None = option(
        None, flag="--critic-num-nodes", help="Nodes that train the critic; --actor-num-nodes when not given."
    )
    critic_num_gpus_per_node: int | None = option(
        None,
        flag="--critic-num-gpus-per-node",
        help="GPUs per node that train the critic; --actor-num-gpus-per-node when not given. With --colocate they are the actor's.",
    )
    critic_load: str | None = option(
        None,
        flag="--critic-load",
        metavar="DIR",
        help="HF directory that the critic starts from, with or without a value head; --hf-checkpoint when not given.",
    )
    critic_lr: float | None = option(None, flag="--critic-lr", help="Learning rate of the critic; --lr when not given.")
    critic_lr_warmup_iters: int = option(
        0, flag="--critic-lr-warmup-iters", help="Optimizer steps of the critic's linear warm-up from 0."
    )
    num_critic_only_steps: int = option(
        0, flag="--num-critic-only-steps", help="First rollouts of the run on which the critic alone is trained."
    )
    critic_loss_type: str = option(
        "value_loss", flag="--critic-loss-type", metavar="NAME", help="The critic's loss, by plugin name."
    )
