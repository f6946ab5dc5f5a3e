"""A loss that is a function of the user's (``--loss-type custom_loss --custom-loss-function-path PATH``).

``fn(inputs)`` gets :class:`miles_core.protocols.LossInputs` and returns a :class:`miles_core.protocols.LossOutputs`, or the loss
of each token alone, ``[N]``. Its attribute ``needs``, a set of names as of :class:`miles_core.protocols.Loss`, says what must be
computed for it; without one that is ``old_log_probs`` and ``advantages``.

Scripts for miles have ``fn(args, batch, logits, sum_of_sample_mean)``, which works too, see ``docs/custom-functions.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miles_algos.options import CustomLossOptions
from miles_core.plugins import load_function

if TYPE_CHECKING:
    from miles_core.options import Config


def create(config: Config) -> Any:
    """The function as a :class:`miles_core.protocols.Loss`.

    Raises:
        ValueError: no function is named.
    """
    loss = load_function(config, CustomLossOptions, "custom_loss_function_path")
    if loss is None:
        raise ValueError("custom_loss needs --custom-loss-function-path")
    return loss
