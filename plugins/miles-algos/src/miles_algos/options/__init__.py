"""Options of the algorithms, a file for each family.

Standard library and miles_core only: read to show help, without importing torch.
"""

from miles_algos.options.correction import OpsmOptions, RejectionOptions, TisOptions
from miles_algos.options.critic import ValueLossOptions
from miles_algos.options.distillation import DistillationOptions
from miles_algos.options.kl import KlLossOptions, KlOptions, RewardKlOptions
from miles_algos.options.policy import (
    ClipOptions,
    CustomLossOptions,
    DualClipOptions,
    EntropyOptions,
    ReducerOptions,
    SoftGateOptions,
)
from miles_algos.options.returns import DiscountOptions, GaeOptions
from miles_algos.options.rewards import GroupRewardOptions, GroupStdOptions

__all__ = [
    "ClipOptions",
    "CustomLossOptions",
    "DiscountOptions",
    "DistillationOptions",
    "DualClipOptions",
    "EntropyOptions",
    "GaeOptions",
    "GroupRewardOptions",
    "GroupStdOptions",
    "KlLossOptions",
    "KlOptions",
    "OpsmOptions",
    "ReducerOptions",
    "RejectionOptions",
    "RewardKlOptions",
    "SoftGateOptions",
    "TisOptions",
    "ValueLossOptions",
]
