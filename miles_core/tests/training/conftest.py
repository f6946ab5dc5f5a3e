from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from miles_core.config import AlgorithmOptions, RolloutOptions, TrainingOptions
from miles_core.options import Config
from miles_core.protocols import AdvantageInputs, AdvantageOutputs, LossInputs, LossOutputs, ModelSpec
from miles_core.testing import ToyBackend, write_toy_checkpoint
from miles_core.training.trainer import Trainer


class ClippedLoss:
    """A clipped policy gradient."""

    needs = frozenset({"old_log_probs", "advantages"})
    zero_advantage_is_zero_loss = True

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        exponent = torch.where(inputs.mask != 0, inputs.log_probs - inputs.old_log_probs, 0).clamp(-20, 20)
        ratio = exponent.exp()
        plain, clipped = -ratio * inputs.advantages, -ratio.clamp(0.8, 1.28) * inputs.advantages
        loss = torch.maximum(plain, clipped)
        metrics = {"pg_loss": loss.detach(), "pg_clipfrac": (clipped > plain).float(), "ppo_kl": -exponent.detach()}
        return LossOutputs(loss, metrics)


class KeepingLoss(ClippedLoss):
    """The same without leaving samples out."""

    zero_advantage_is_zero_loss = False


class RewardAdvantage:
    """The reward at every token."""

    needs: frozenset[str] = frozenset()

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        return list(rewards)

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        values = inputs.rewards.repeat_interleave(torch.tensor(inputs.lengths, dtype=torch.int64))
        return AdvantageOutputs(values, values)


class Kit:
    """What the tests of this folder share."""

    ClippedLoss = ClippedLoss
    KeepingLoss = KeepingLoss
    RewardAdvantage = RewardAdvantage

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def trainer(
        self,
        loss=None,
        advantage=None,
        *,
        backend_class=ToyBackend,
        per_token=False,
        rollout=None,
        algorithm=None,
        function=None,
        **training,
    ) -> Trainer:
        """A trainer around a toy model that is set up, with plain SGD."""
        config = Config.of(
            TrainingOptions(**{"lr": 0.1, "clip_grad": 0.0, **training}),
            AlgorithmOptions(calculate_per_token_loss=per_token, **(algorithm or {})),
            rollout or RolloutOptions(logprob_diff_limit=100.0, logprob_diff_warn=100.0),
        )
        backend = backend_class(config, optimizer="sgd")
        backend.setup(ModelSpec(checkpoint=self.checkpoint, train_steps=10, copies=("ref",)))
        return Trainer(config, backend, loss or ClippedLoss(), advantage or RewardAdvantage(), function)


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Losses, an estimator, and trainers around a toy model."""
    torch.set_num_threads(1)
    return Kit(write_toy_checkpoint(tmp_path_factory.mktemp("toy")))


@pytest.fixture
def furthest() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], float]:
    """The largest error of any tensor, relative to its largest entry."""

    def compare(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
        assert found.keys() == wanted.keys()
        return max(float((found[n] - wanted[n]).abs().max() / wanted[n].abs().max().clamp(min=1e-12)) for n in wanted)

    return compare
