"""M530 to M533: engines that are started again; M534 to M536: engines over several nodes."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

FAULT_TOLERANCE: dict[str, Explanation] = {
    "M530": Explanation(
        title="Engines that cannot be started again",
        meaning="`--use-fault-tolerance` is given for engines that the run does not start itself.",
        remedy="Leave it out, and have whoever runs the servers watch them, or let the run start its engines.",
        example=(
            "M530 miles-core 0.1.0: --use-fault-tolerance (command line) does not go with --rollout-external: the run cannot start "
            "those servers. Do: leave one of the two out, and have whoever started the servers watch them"
        ),
    ),
    "M531": Explanation(
        title="An engine does not come up again",
        meaning=(
            "An engine was lost, and starting it again in its place failed several times in a row: its device is broken, or "
            "its memory is taken by another process."
        ),
        remedy="See the log that the line names, and the devices. Start again with `--load` to go on from the last saved state.",
        example=(
            "M531 miles-core 0.1.0: engine-1 does not come up again: 3 starts failed, the last one so: M451 no such device. "
            "Do: see runs/a/logs/engine-1.log; go on from the last saved state with --load"
        ),
    ),
    "M532": Explanation(
        title="Served weights cannot be kept",
        meaning=(
            "With `--use-fault-tolerance` the weights that engines serve are kept in the run folder, for engines that are started "
            "again, and they could not be written there."
        ),
        remedy="Make room for two copies of the model, on a disk that all machines of the run share.",
        example=(
            "M532 miles-core 0.1.0: cannot keep the weights of version 7 in runs/a/served: No space left on device. Do: make room "
            "there for two copies of the model, or leave --use-fault-tolerance out"
        ),
    ),
    "M533": Explanation(
        title="Weights cannot be published",
        meaning="Every time that a version was sent, an engine was lost on the way.",
        remedy="See the engines' logs for what they have in common; the line has the last failure.",
        example=(
            "M533 miles-core 0.1.0: version 7 of the weights could not be published 5 times: M470 miles-core: engine-0 failed "
            "taking bucket 0 of version 7. Do: see the engines' logs; go on from the last saved state with --load"
        ),
    ),
    "M534": Explanation(
        title="An engine that does not fit the nodes",
        meaning="`--rollout-num-gpus-per-engine` is more than a node has, and not whole nodes, or the engine knows one node only.",
        remedy="Give a multiple of `--num-gpus-per-node` with an engine that spans nodes, on a Ray cluster that has them.",
        example=(
            "M534 miles-core 0.1.0: --rollout-num-gpus-per-engine 12 (command line) is no multiple of --num-gpus-per-node 8 "
            "(default): an engine over several nodes has every GPU of each. Do: take 8 or 16"
        ),
    ),
    "M535": Explanation(
        title="An engine's GPUs are not on one node",
        meaning="What Ray has reserved leaves an engine, or a part of one, with GPUs of several nodes.",
        remedy="Have whole nodes free, each with `--num-gpus-per-node` GPUs; other runs may hold some of them.",
        example=(
            "M535 miles-core: engine-0 does not get 8 devices of one node: no node has so many of those that are reserved. Do: "
            "see that --num-gpus-per-node is what the nodes have, and that whole nodes are free"
        ),
    ),
    "M536": Explanation(
        title="Colocated engines over several nodes without weights on each",
        meaning=(
            "With `--colocate` each rank of an engine opens GPU memory of the trainer beside it, so that every training rank has "
            "to export weights; this backend exports on some ranks only."
        ),
        remedy="Give engines GPUs of their own, or keep each on one node.",
        example=(
            "M536 miles-core: engines over several nodes cannot take weights from trainers on their GPUs: only some ranks of this "
            "backend export, and a handle of GPU memory is worth nothing on another node. Do: leave --colocate out, or take "
            "engines of one node"
        ),
    ),
}
