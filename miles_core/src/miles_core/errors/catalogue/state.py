"""M460 to M479: run states and weights."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

STATE: dict[str, Explanation] = {
    "M460": Explanation(
        title="No space for the run state",
        meaning="The disk or quota is full. The last good state is untouched.",
        remedy="Free space, or keep fewer states with `--save-total-limit`.",
        example=(
            "M460 miles-core 0.1.0: cannot write states/rollout_3.tmp/trainer: No space left on device. Do: free space, "
            "or keep fewer states with --save-total-limit; the last good state is untouched"
        ),
    ),
    "M461": Explanation(
        title="No permission to save",
        meaning="The folder of `--save` cannot be written.",
        remedy="Make the folder writable, or choose another `--save`.",
        example=(
            "M461 miles-core 0.1.0: cannot create states: Permission denied. Do: make the folder writable, or choose another --save"
        ),
    ),
    "M462": Explanation(
        title="Saving failed",
        meaning="The file system reported an error while a run state was written. The last good state is untouched.",
        remedy="Check the file system.",
        example=(
            "M462 miles-core 0.1.0: cannot write states/rollout_3.tmp/trainer: Input/output error. Do: check the file "
            "system; the last good state is untouched"
        ),
    ),
    "M463": Explanation(
        title="Two runs save into one folder",
        meaning="Another run holds the folder of `--save`.",
        remedy="Give every run a `--save` of its own.",
        example="M463 miles-core 0.1.0: another run saves into states. Do: give every run a --save of its own",
    ),
    "M464": Explanation(
        title="A save out of order",
        meaning="A run state was committed that was not begun: a fault of the caller, not of the options.",
        remedy="Report it with the log.",
        example=("M464 miles-core 0.1.0: rollout 3 is committed but not begun. Do: call begin of the same rollout first"),
    ),
    "M465": Explanation(
        title="A config that cannot be compared",
        meaning="The config.json of the checkpoint, or the one in the run state, cannot be read.",
        remedy="Check `--hf-checkpoint`.",
        example=(
            "M465 miles-core 0.1.0: cannot read models/tiny/config.json: No such file or directory. Do: check --hf-checkpoint"
        ),
    ),
    "M466": Explanation(
        title="A run state of another model",
        meaning="The saved run state belongs to a checkpoint with another config.json.",
        remedy="Give the `--hf-checkpoint` that the run was started with, or another `--load`.",
        example=(
            "M466 miles-core 0.1.0: the run state states/rollout_3 is of another model than models/tiny: their "
            "config.json differ. Do: give the --hf-checkpoint that the run was started with, or another --load"
        ),
    ),
    "M467": Explanation(
        title="Metrics that cannot be written",
        meaning="The run folder's metrics.jsonl cannot be opened or written.",
        remedy="Check the folder's permissions and the free space.",
        example="M467 miles-core: metrics.jsonl cannot be written: No space left on device. Do: make room in the run folder",
    ),
    "M470": Explanation(
        title="Publishing weights failed",
        meaning=("An engine failed while it took new weights. It stays closed until weights are published to it again."),
        remedy="See the engine's log in the run folder.",
        example=(
            "M470 miles-core 0.1.0: engine-0 failed to commit: M459 version 3 is not whole. Do: see the engine's log; it "
            "stays closed until weights are published to it again"
        ),
    ),
    "M471": Explanation(
        title="No room for a bucket of weights",
        meaning="Shared memory, the disk or GPU memory has no room for a bucket of published weights.",
        remedy=("Lower `--update-weight-buffer-size`, or enlarge what is full; in a container shared memory is small by default."),
        example=(
            "M471 miles-core 0.1.0: no room for a bucket of weights of 536870912 bytes in /dev/shm: No space left on "
            "device. Do: lower --update-weight-buffer-size, or enlarge shared memory (docker run --shm-size)"
        ),
    ),
    "M472": Explanation(
        title="A broken bucket of weights",
        meaning="A bucket does not hold what its entries say.",
        remedy="Publish again; report it when it recurs.",
        example=(
            "M472 miles-core 0.1.0: a bucket of weights is broken: model.norm.weight ends after its last byte. Do: "
            "publish again; report it when it recurs"
        ),
    ),
    "M473": Explanation(
        title="An engine has other weights than the trainer",
        meaning="`--check-weight-update-equal` compared every parameter after publishing, and some differ.",
        remedy="Check how the engine maps names and types of parameters.",
        example=(
            "M473 miles-core 0.1.0: engine-0 does not have the trainer's weights of version 4: 2 of 311 parameters are "
            "wrong: lm_head.weight. Do: check how the engine maps names and dtypes of parameters"
        ),
    ),
    "M474": Explanation(
        title="The trainer exported no weights",
        meaning="The backend yielded no tensor to publish.",
        remedy="Report it to the owner of the backend.",
        example="M474 miles-core 0.1.0: the trainer exported no weights. Do: report it to the owner of the backend",
    ),
    "M475": Explanation(
        title="A weight transport that does not work here",
        meaning="Trainer and engine do not share what the transport needs: memory, a GPU, a disk or a network.",
        remedy=(
            "Place them on one machine for shared memory, on one GPU for CUDA IPC; otherwise let every machine reach the "
            "address that the line names."
        ),
        example=(
            "M475 miles-core 0.1.0: cannot open the bucket of weights /dev/shm/miles/3-0: No such file or directory. Do: "
            "run engine and trainer on one machine with a common /dev/shm"
        ),
    ),
}
