from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from miles_core.config import AlgorithmOptions, RolloutOptions, TrainingOptions
from miles_core.options import Config
from miles_core.protocols import AdvantageInputs, AdvantageOutputs, LossInputs, LossOutputs, ModelSpec
from miles_core.testing import ToyBackend, write_toy_checkpoint
from miles_core.training.critic import CriticTrainer
from miles_core.training.exchange import TokenArrays
from miles_core.training.table import RowTable
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


class SquaredError:
    """A critic's loss."""

    needs = frozenset({"values", "old_values", "returns"})

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        loss = (inputs.values - inputs.returns).square()
        return LossOutputs(loss, {"value_loss": loss.detach(), "moved": (inputs.values - inputs.old_values).detach().abs()})


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
    SquaredError = SquaredError

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
        watch=None,
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
        return Trainer(config, backend, loss or ClippedLoss(), advantage or RewardAdvantage(), function, watch)

    def critic(
        self, loss=None, *, per_token=False, algorithm=None, dtype=torch.float32, optimizer="sgd", **training
    ) -> CriticTrainer:
        """A critic's trainer around a toy model with a value head, whose weights are not 0."""
        options = TrainingOptions(**{"lr": 0.05, "clip_grad": 0.0, **training})
        config = Config.of(options, AlgorithmOptions(calculate_per_token_loss=per_token, **(algorithm or {})))
        backend = ToyBackend(config, optimizer=optimizer, dtype=dtype)
        backend.setup(ModelSpec(checkpoint=self.checkpoint, train_steps=10, value_head=True))
        with torch.no_grad():
            backend._sets["actor"].head.weight.copy_(torch.linspace(-0.2, 0.2, 16))
        return CriticTrainer(config, backend, loss or SquaredError())

    @staticmethod
    def returns(rows) -> TokenArrays:
        """Some returns of the rows, as an actor's rank would say them."""
        flat = [np.linspace(-1, 1, row.response_length) + row.index % 3 for row in rows]
        return TokenArrays.of(RowTable(rows), np.concatenate([*flat, np.zeros(1)]))


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
