"""Which plugins a run uses. Naming one enables it; nothing else does."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class PluginOptions:
    """Plugins"""

    backend: str = option(
        "megatron", flag="--train-backend", aliases=("--backend",), metavar="NAME", help="Training backend, by plugin name."
    )
    engine: str = option("transformers", flag="--engine", metavar="NAME", help="Rollout engine, by plugin name.")
    algo: str | None = option(
        None, flag="--algo", metavar="NAME", help="Algorithm recipe: an advantage estimator, a loss, filters and their defaults."
    )
    advantage_estimator: str = option(
        "grpo", flag="--advantage-estimator", metavar="NAME", help="Advantage estimator, by plugin name."
    )
    loss_type: str = option("policy_loss", flag="--loss-type", metavar="NAME", help="Loss, by plugin name.")
    rm_type: str | None = option(None, flag="--rm-type", metavar="NAME", help="Reward, by plugin name.")
    dynamic_sampling_filter_path: str | None = option(
        None,
        flag="--dynamic-sampling-filter-path",
        metavar="NAME|PATH",
        signature="filter",
        help="Filter that every finished group must pass: a plugin name, or the dotted path of a function of a list of samples.",
    )
    logger: list[str] = option(["console", "jsonl"], flag="--logger", metavar="NAME", help="Metric loggers, by plugin name.")
    hooks: list[str] = option([], flag="--hooks", metavar="NAME", help="Observers of lifecycle events, by plugin name.")
    block_plugins: list[str] = option(
        [], flag="--block-plugins", metavar="DIST|NAME", help="Distributions or dist:name plugins that must not be imported."
    )
    allow_plugins: list[str] = option(
        [],
        flag="--allow-plugins",
        metavar="DIST|NAME",
        help="When given, only these distributions or dist:name plugins may be imported.",
    )
