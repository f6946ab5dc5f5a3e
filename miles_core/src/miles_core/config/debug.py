"""Rollouts and training data on disk, halves of a run, memory records and profiles."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option

PROFILE_TARGETS = ("train_overall", "train_actor", "train_log_probs")
MEMORY_RECORDERS = ("torch", "memray")


@dataclass(frozen=True)
class DebugOptions:
    """Debugging and profiling"""

    save_debug_rollout_data: str | None = option(
        None,
        flag="--save-debug-rollout-data",
        metavar="PATH",
        help="Write every rollout's samples to this file; {rollout_id} in it is the rollout's number, eval_N for evaluations.",
    )
    load_debug_rollout_data: str | None = option(
        None,
        flag="--load-debug-rollout-data",
        metavar="PATH",
        help="Train on saved rollouts instead of generating; {rollout_id} as in --save-debug-rollout-data. No engines.",
    )
    load_debug_rollout_data_subsample: float | None = option(
        None,
        flag="--load-debug-rollout-data-subsample",
        metavar="SHARE",
        help="Of loaded rollouts keep only this share of the groups, half of them from the front and half from the back.",
    )
    debug_rollout_only: bool = option(
        False, flag="--debug-rollout-only", help="Generate and grade with the checkpoint's weights; no trainers are started."
    )
    debug_train_only: bool = option(
        False, flag="--debug-train-only", help="Train without engines, on --load-debug-rollout-data or on responses from the data."
    )
    dump_details: str | None = option(
        None,
        flag="--dump-details",
        metavar="DIR",
        help="Write rollouts (rollout_data/), what training computed for each token (train_data/) and the tokenizer to DIR.",
    )
    save_debug_train_data: str | None = option(
        None,
        flag="--save-debug-train-data",
        metavar="PATH",
        help="Write log-probs, advantages and masks of every token to this file; {rollout_id} and {rank} are filled in.",
    )
    record_memory_history: bool = option(
        False,
        flag="--record-memory-history",
        help="Record the trainers' allocations. --memory-snapshot-dir or --memory-recorder switch it on, too.",
    )
    memory_snapshot_dir: str = option(
        ".", flag="--memory-snapshot-dir", metavar="DIR", help="Where recorded allocations are written, a file for each rank."
    )
    memory_snapshot_path: str = option(
        "snapshot.pickle", flag="--memory-snapshot-path", metavar="NAME", help="End of the name of those files."
    )
    memory_snapshot_num_steps: int | None = option(
        None,
        flag="--memory-snapshot-num-steps",
        help="Write them after this many trained rollouts and stop recording; at the end of the run when not given.",
    )
    memory_recorder: str = option(
        "torch",
        flag="--memory-recorder",
        choices=MEMORY_RECORDERS,
        help="torch records what PyTorch allocates on the device, and writes it on running out of memory, too; memray records "
        "host memory and has to be installed.",
    )
    use_pytorch_profiler: bool = option(
        False, flag="--use-pytorch-profiler", help="Profile the trainers. --profile-target switches it on, too."
    )
    profile_target: list[str] = option(
        ["train_overall"],
        flag="--profile-target",
        choices=PROFILE_TARGETS,
        help="What is profiled: all of training, only optimizer steps (train_actor), only passes for log-probs (train_log_probs).",
    )
    profile_step_start: int = option(
        10, flag="--profile-step-start", help="First rollout to profile, counted from the run's start."
    )
    profile_step_end: int = option(12, flag="--profile-step-end", help="The rollout before which profiling ends.")
    profile_dir: str | None = option(
        None,
        flag="--profile-dir",
        metavar="DIR",
        help="Where the traces are written, one file for each rank and span; profile/ in the run folder when not given.",
    )
