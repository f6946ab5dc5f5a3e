"""Options of the loggers of miles-loggers. Standard library and miles_core only."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class WandbOptions:
    """Weights & Biases"""

    wandb_mode: str | None = option(
        None,
        flag="--wandb-mode",
        choices=("online", "offline", "disabled"),
        help="Where runs go: to the server, to files, or nowhere. WANDB_MODE counts when not given, then online.",
    )
    wandb_project: str | None = option(None, flag="--wandb-project", help="Project that the run belongs to.")
    wandb_group: str | None = option(
        None, flag="--wandb-group", help="Group that the run belongs to; it gives the run its name too. The run folder's name else."
    )
    wandb_team: str | None = option(None, flag="--wandb-team", help="Team (entity) that the project belongs to.")
    wandb_host: str | None = option(None, flag="--wandb-host", metavar="URL", help="Address of a server of one's own.")
    wandb_key: str | None = option(
        None, flag="--wandb-key", secret=True, help="API key. WANDB_API_KEY, or wandb login, keeps it out of the process list."
    )
    wandb_run_id: str | None = option(None, flag="--wandb-run-id", metavar="ID", help="Run to go on with.")
    disable_wandb_random_suffix: bool = option(
        False, flag="--disable-wandb-random-suffix", help="Leave the random suffix off the names of group and run."
    )
    wandb_always_use_train_step: bool = option(
        False,
        flag="--wandb-always-use-train-step",
        help="Count rollouts and evaluations in optimizer steps: rollouts x samples of a rollout // global batch size.",
    )


@dataclass(frozen=True)
class TensorboardOptions:
    """TensorBoard"""

    tb_project_name: str | None = option(
        None, flag="--tb-project-name", help="Folder of the project, below TENSORBOARD_DIR or tensorboard_log."
    )
    tb_experiment_name: str | None = option(
        None, flag="--tb-experiment-name", help="Folder of the run in it; the run folder's name when not given."
    )
