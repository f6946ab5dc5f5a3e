"""M580 to M586: the fsdp backend."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

FSDP_OPTIONS: dict[str, Explanation] = {
    "M580": Explanation(
        title="Copies of the weights that do not fit",
        meaning="`--dp-replicate-size` groups of ranks each hold all weights, so that it must divide the training ranks.",
        remedy="Take a size that divides the ranks, or leave it out to share the weights out over all of them.",
        example=(
            "M580 miles-fsdp 0.1.0: --dp-replicate-size 4 does not fit the run: 6 ranks of the actor are no multiple of it. Do: "
            "change the number of ranks or this size"
        ),
    ),
    "M581": Explanation(
        title="Compilation that contradicts another option",
        meaning=(
            "`--fsdp-compile` goes neither with `--true-on-policy-mode`, whose results are those of given kernels bit for bit, nor "
            "with routing replay."
        ),
        remedy="Leave one of the two out.",
        example=(
            "M581 miles-fsdp 0.1.0: --fsdp-compile contradicts --true-on-policy-mode: a compiler orders sums in its own way. Do: "
            "leave one of them out"
        ),
    ),
    "M582": Explanation(
        title="No compiler",
        meaning=(
            "`--fsdp-compile` and `--megatron-compile` write programs on the machines that train: C++ for CPUs, Triton with a "
            "little C for GPUs."
        ),
        remedy="Install g++ (gcc for GPUs, and the package triton, which comes with PyTorch there), or leave the option out.",
        example=(
            "M582 miles-fsdp 0.1.0: --fsdp-compile has no compiler: neither g++ nor clang++ is on the PATH, nor does CXX name a "
            "compiler. Do: install one, or leave it out"
        ),
    ),
}
"""Found before a run starts."""
