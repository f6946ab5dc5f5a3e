"""How many groups are sampled, which are kept, and what becomes of the rest."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling and filtering"""

    over_sampling_batch_size: int | None = option(
        None,
        flag="--over-sampling-batch-size",
        help=(
            "Prompts that go out together, again whenever those on their way and those kept are fewer than --rollout-batch-size; "
            "the rollout ends with the first --rollout-batch-size groups. When not given, --rollout-batch-size prompts go out, "
            "then as many as filters dropped, and so on, which is the same in every rerun."
        ),
    )
    partial_rollout: bool = option(
        False,
        flag="--partial-rollout",
        help="Keep the tokens of unfinished groups when a rollout ends, and go on with them in the next one.",
    )
    mask_offpolicy_in_partial_rollout: bool = option(
        False,
        flag="--mask-offpolicy-in-partial-rollout",
        help="Train only on the tokens that the rollout itself made, not on those that it took over from earlier ones.",
    )
    buffer_filter_path: str | None = option(
        None,
        flag="--buffer-filter-path",
        metavar="NAME|PATH",
        signature="buffer_filter",
        help="Function that chooses which groups of earlier rollouts go first; pop_first (the default) takes the oldest.",
    )
    rollout_sample_filter_path: str | None = option(
        None,
        flag="--rollout-sample-filter-path",
        metavar="PATH",
        signature="sample_filter",
        help="Function that sets remove_sample of samples that are not trained on; they still count in their group and batch.",
    )
    rollout_all_samples_process_path: str | None = option(
        None,
        flag="--rollout-all-samples-process-path",
        metavar="PATH",
        signature="all_samples",
        help="Function that sees every group graded in a rollout, those that filters dropped included.",
    )
    custom_convert_samples_to_train_data_path: str | None = option(
        None,
        flag="--custom-convert-samples-to-train-data-path",
        metavar="PATH",
        signature="convert",
        help="Function that turns a rollout's samples into training rows, rewards included, in place of core.",
    )
    rollout_data_postprocess_path: str | None = option(
        None,
        flag="--rollout-data-postprocess-path",
        metavar="PATH",
        signature="data_postprocess",
        help="Function that every training rank calls with its rows once log-probs and advantages are known; it may change them.",
    )
