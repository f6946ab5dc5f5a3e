"""Which experts the tokens of a mixture of experts go to while training."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class RoutingOptions:
    """Routing replay"""

    use_routing_replay: bool = option(
        False,
        flag="--use-routing-replay",
        help="Mixture of experts: record each token's experts in the pass for old log-probs and train with the same ones (R2).",
    )
    use_rollout_routing_replay: bool = option(
        False,
        flag="--use-rollout-routing-replay",
        help="Mixture of experts: train with the experts that the engine chose while generating (R3).",
    )

    @property
    def replays(self) -> bool:
        """Whether training takes its routes from anywhere but its own routers."""
        return self.use_routing_replay or self.use_rollout_routing_replay
