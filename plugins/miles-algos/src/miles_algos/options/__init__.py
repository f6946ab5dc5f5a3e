"""Options of the algorithms, a file for each family.

Standard library and miles_core only: read to show help, without importing torch.
"""

from miles_algos.options.critic import ValueLossOptions
from miles_algos.options.policy import PolicyLossOptions
from miles_algos.options.rewards import GroupRewardOptions

__all__ = ["GroupRewardOptions", "PolicyLossOptions", "ValueLossOptions"]
