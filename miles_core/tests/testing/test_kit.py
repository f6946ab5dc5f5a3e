from __future__ import annotations

import inspect
import json

import pytest
import torch

import miles_core.testing
from miles_core.config import TrainingOptions
from miles_core.options import Config
from miles_core.protocols import LossInputs, LossOutputs, TrainingBackend
from miles_core.protocols.backend import ModelSpec
from miles_core.testing import ToyBackend, check_backend, check_split_invariance, toy_reference, write_toy_checkpoint
from miles_core.testing.toy_model import ToyConfig
from miles_core.training import ragged


class SequenceRatioLoss:
    """One ratio for all tokens of a sample, an entropy bonus and a distance from the reference model."""

    needs = frozenset({"old_log_probs", "ref_log_probs", "advantages", "entropy"})

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        gaps = ragged.masked_mean(inputs.log_probs - inputs.old_log_probs, inputs.mask, inputs.lengths)
        ratio = ragged.broadcast(gaps.exp(), inputs.lengths)
        distance = (inputs.log_probs - inputs.ref_log_probs) ** 2
        loss = -ratio * inputs.advantages + 0.1 * distance - 0.01 * inputs.entropy
        return LossOutputs(loss, {"distance": distance.detach(), "ratio": ratio.detach()})


class BatchMeanLoss(SequenceRatioLoss):
    """Wrong: advantages relative to the micro-batch's own mean."""

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        return LossOutputs(-inputs.log_probs * (inputs.advantages - inputs.advantages.mean()))


class SelfNormalisedMetric(SequenceRatioLoss):
    """Wrong: a metric that is an average already."""

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        terms = inputs.log_probs.detach()
        return LossOutputs(-inputs.log_probs, {"average": (terms * inputs.mask).mean().expand_as(terms)})


@pytest.fixture
def checkpoint(tmp_path):
    torch.set_num_threads(1)
    return write_toy_checkpoint(tmp_path / "toy")


def make_backend(**options) -> ToyBackend:
    return ToyBackend(Config.of(TrainingOptions(lr=1e-2)), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sound_loss_passes(dtype):
    check_split_invariance(SequenceRatioLoss(), dtype=dtype, temperature=0.8, tolerance=1e-5)


@pytest.mark.parametrize(
    ("loss", "what"), [(BatchMeanLoss(), "the gradient of .* differs by"), (SelfNormalisedMetric(), "average is .* instead of")]
)
def test_a_loss_that_depends_on_its_micro_batch_is_caught(loss, what):
    with pytest.raises(AssertionError, match=what):
        check_split_invariance(loss)


def test_the_toy_backend_keeps_to_the_protocol(checkpoint, tmp_path):
    further = write_toy_checkpoint(tmp_path / "further", ToyConfig(hidden_size=24, layers=1, heads=3), seed=2)
    made = check_backend(make_backend, checkpoint, reference=toy_reference, further=further)
    assert made == ["outputs", "gradients", "copies", "resume", "export"]


def test_the_toy_backend_has_every_member_of_the_protocol():
    members = {name for name in vars(TrainingBackend) if not name.startswith("_")}
    assert members <= set(dir(ToyBackend))
    for name in members - {"device", "parallel"}:
        wanted, found = (inspect.signature(getattr(kind, name)) for kind in (TrainingBackend, ToyBackend))
        assert str(found) == str(wanted), name


class ForgetsTemperature(ToyBackend):
    def forward(self, micro_batches, request, *, weights="actor"):
        return super().forward(micro_batches, type(request)(entropy=request.entropy), weights=weights)


class LeaksBetweenSegments(ToyBackend):
    def forward(self, micro_batches, request, *, weights="actor"):
        joined = [type(b)(**{**vars(b), "cu_seqlens": None}) for b in micro_batches]
        return super().forward(joined, request, weights=weights)


class AveragesMicroBatches(ToyBackend):
    def train_step(self, micro_batches, request, loss):
        return super().train_step(micro_batches, request, lambda b, o: loss(b, o) / len(micro_batches))


class ForgetsOptimizer(ToyBackend):
    def load(self, directory):
        state = self._optimizer.state_dict()
        super().load(directory)
        self._optimizer.load_state_dict(state)


class LinksCopies(ToyBackend):
    def setup(self, spec):
        super().setup(spec)
        self._sets["ref"] = self._sets["actor"]


class TrainsFurtherModels(ToyBackend):
    def setup(self, spec):
        super().setup(spec)
        self._sets["further"] = self._sets["actor"]


class RenamesWeights(ToyBackend):
    def export_weights(self):
        return ((f"model.{name}", tensor) for name, tensor in super().export_weights())


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (ForgetsTemperature, "log_probs .* differs by"),
        (LeaksBetweenSegments, "log_probs .*thd.* differs by"),
        (AveragesMicroBatches, "the gradient's norm is"),
        (ForgetsOptimizer, "weights after a resumed step"),
        (LinksCopies, "log_probs .*weights ref.* differs by"),
        (TrainsFurtherModels, "log_probs .*weights further.*no step may change.* differs by"),
        (RenamesWeights, "differ from the checkpoint in name"),
    ],
)
def test_a_backend_that_breaks_the_protocol_is_caught(checkpoint, kind, what):
    with pytest.raises(AssertionError, match=what):
        check_backend(lambda: kind(Config.of(TrainingOptions(lr=1e-2))), checkpoint, reference=toy_reference)


def test_a_toy_checkpoint_exports_as_it_was(checkpoint, tmp_path):
    backend = make_backend()
    backend.setup(ModelSpec(checkpoint=checkpoint, train_steps=1))
    backend.export_hf(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["vocab_size"] == 32
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_public_names_are_sorted():
    assert miles_core.testing.__all__ == sorted(miles_core.testing.__all__)


def test_toy_checkpoints_are_a_function_of_their_seed(checkpoint, tmp_path):
    torch.manual_seed(7)
    again, other = write_toy_checkpoint(tmp_path / "same"), write_toy_checkpoint(tmp_path / "other", seed=1)
    read = [(folder / "model.safetensors").read_bytes() for folder in (checkpoint, again, other)]
    assert read[0] == read[1] != read[2]
