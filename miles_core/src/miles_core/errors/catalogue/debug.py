"""M370 to M375: debugging and profiling."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

DEBUG: dict[str, Explanation] = {
    "M370": Explanation(
        title="Halves of a run that leave nothing",
        meaning="`--debug-rollout-only` leaves out the trainers; what it was given with leaves out the engines.",
        remedy="Leave one of them out.",
        example=(
            "M370 miles-core 0.1.0: --debug-train-only (argument 9) does not go with --debug-rollout-only (argument 10): nothing "
            "would be left of the run. Do: leave one of them out"
        ),
    ),
    "M371": Explanation(
        title="A path without its numbers",
        meaning=(
            "The path is filled in for every rollout, and for every training rank. Without the names in braces the files would "
            "overwrite each other; other names in braces mean nothing."
        ),
        remedy="Write `{rollout_id}`, and `{rank}` for training data, where the numbers go, and `{{` for a brace.",
        example=(
            "M371 miles-core 0.1.0: --save-debug-rollout-data rollouts.npz (argument 9) is no usable path: rollouts or ranks would "
            "share one file without {rollout_id}. Do: write {rollout_id} where the numbers go, and {{ for a brace"
        ),
    ),
    "M372": Explanation(
        title="Saved data that cannot be read",
        meaning="A file of `--load-debug-rollout-data` is missing, damaged, or not one that this version wrote.",
        remedy="Check the path and `--num-rollout`. Files that hold pickled objects (`.pt`) are never read.",
        example=(
            "M372 miles-core 0.1.0: --load-debug-rollout-data out/{rollout_id}.npz (argument 9) does not have 5 rollouts: there "
            "is no file out/3.npz, and 1 more are missing. Do: check the path and --num-rollout"
        ),
    ),
    "M373": Explanation(
        title="Nothing that could be profiled",
        meaning="`--profile-target train_overall` covers the other targets, and the steps must be a range.",
        remedy="Take `train_overall` alone or the other targets, and a start below the end.",
        example=(
            "M373 miles-core 0.1.0: --profile-target train_overall train_actor cannot be profiled: train_overall covers the "
            "others, and PyTorch records one trace at a time. Do: take train_overall alone, or the others"
        ),
    ),
    "M374": Explanation(
        title="memray is not installed",
        meaning="`--memory-recorder memray` records host memory with the package memray, which miles does not install.",
        remedy="`pip install memray`, or take `--memory-recorder torch`.",
        example=(
            "M374 miles-core 0.1.0: --memory-recorder memray cannot be had: memray is not installed. Do: pip install memray, or "
            "take --memory-recorder torch"
        ),
    ),
    "M375": Explanation(
        title="Nothing to train on",
        meaning="`--debug-train-only` starts no engines, and nothing else brings responses.",
        remedy="Give `--load-debug-rollout-data`, or a loss that trains on responses from the data.",
        example=(
            "M375 miles-core 0.1.0: --debug-train-only (argument 9) has nothing to train on: there are no engines to generate "
            "with. Do: give --load-debug-rollout-data, or a loss that trains on responses from the data"
        ),
    ),
}
