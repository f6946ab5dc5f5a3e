"""Whether a training backend does what its protocol says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from miles_core.protocols.backend import ModelSpec, OutputRequest, StepReport, TrainingBackend
from miles_core.testing.random_rows import random_rows
from miles_core.training.batch import MicroBatch, ModelOutputs
from miles_core.training.pack import pack
from miles_core.training.table import RowTable

REQUEST = OutputRequest(entropy=True, temperature=0.7)
_ROWS = 7


class Reference(Protocol):
    """A model that a checkpoint is compared with, run on one sequence at a time."""

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, ``[T]`` to ``[T, V]``, with gradient."""
        ...

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """Every trained tensor, once."""
        ...


def hf_reference(directory: Path) -> Reference:
    """``transformers``' own model of an HF directory, in float32 with its plainest attention."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()

    class HfModel:
        def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(tokens[None], use_cache=False).logits[0]
            return logits

        def parameters(self) -> Iterable[torch.nn.Parameter]:
            return model.parameters()  # type: ignore[no-any-return]

    return HfModel()


def check_backend(
    factory: Callable[[], TrainingBackend],
    checkpoint: Path,
    *,
    reference: Callable[[Path], Reference] = hf_reference,
    further: Path | None = None,
    layouts: Sequence[str] = ("thd", "bshd"),
    tolerance: float = 1e-4,
) -> list[str]:
    """Run a backend of one data-parallel rank through its protocol. ``torch.distributed`` must be initialised if it wants that.

    Checked: log-probs and entropy of every layout and split against the reference; the gradient's norm against the reference's,
    for every layout and split and with an empty micro-batch; that copies and further models stand still, and copies can be
    overwritten; that a saved state comes back and goes on as if it had never stopped; that exported weights are named and typed
    like the checkpoint's and that the exported directory computes what the backend computes.

    Args:
        factory: makes a backend in full precision without dropout that is not set up; called twice.
        checkpoint: HF directory of a small model.
        reference: what to compare with.
        further: HF directory of a further frozen model, best of other sizes; ``checkpoint`` itself when not given.
        layouts: that the backend supports.
        tolerance: of log-probs and entropy, absolute, and of gradient norms, relative.

    Returns:
        The names of the checks that were made.

    Raises:
        AssertionError: what differs, and by how much.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    vocabulary = (config.get("text_config") or config)["vocab_size"]
    other = further or checkpoint
    spec = ModelSpec(checkpoint=checkpoint, train_steps=10, copies=("ref",), models=(("further", other),))
    backend = factory()
    backend.setup(spec)
    case = _Case(backend, RowTable(random_rows(_ROWS, seed=3, vocabulary=vocabulary)), tuple(layouts), tolerance)
    wanted, norm = case.expected(reference(checkpoint))
    case.check_outputs(wanted, "actor", "the checkpoint's reference model")
    case.check_outputs(wanted, "ref", "the checkpoint's reference model")
    wanted_further, _ = case.expected(reference(other))
    case.check_outputs(wanted_further, "further", f"the reference model of {other}")
    with tempfile.TemporaryDirectory() as folder:
        first, later, exported = (Path(folder, name) for name in ("first", "later", "exported"))
        for directory in (first, later, exported):
            directory.mkdir()
        backend.save(first)
        case.check_gradients(norm, first)
        case.check_copies(wanted)
        case.check_outputs(wanted_further, "further", f"the reference model of {other}, which no step may change")
        backend.save(later)
        case.check_resume(factory, spec, later)
        case.check_export(checkpoint, exported, reference)
    backend.close()
    return ["outputs", "gradients", "copies", "resume", "export"]


@dataclass
class _Case:
    backend: TrainingBackend
    table: RowTable
    layouts: tuple[str, ...]
    tolerance: float

    def expected(self, model: Reference) -> tuple[ModelOutputs, float]:
        """Outputs of the reference on one sample at a time, and the norm of its gradient."""
        weights = self._weights()
        log_probs, entropies, start = [], [], 0
        for row in self.table.rows:
            response = row.response_length
            ids = torch.from_numpy(row.tokens.astype(np.int64))
            every = torch.log_softmax(model(ids)[-response - 1 : -1].float() / REQUEST.temperature, -1)
            log_probs.append(every.gather(1, ids[-response:, None])[:, 0])
            entropies.append(-(every.exp() * every).sum(-1))
            torch.autograd.backward(_loss(log_probs[-1], entropies[-1], torch.from_numpy(weights[start : start + response])))
            start += response
        squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
        outputs = ModelOutputs(log_probs=torch.cat(log_probs).detach(), entropy=torch.cat(entropies).detach())
        return outputs, float(torch.stack(squares).sum().sqrt())

    def check_outputs(self, wanted: ModelOutputs, weights: str, whose: str) -> None:
        for layout in self.layouts:
            for chunk_size in (-1, 3):
                request = OutputRequest(entropy=True, temperature=REQUEST.temperature, chunk_size=chunk_size)
                for bins in self._splits():
                    outputs = self.backend.forward(self._batches(bins, layout), request, weights=weights)
                    assert outputs is not None, "forward returned None on a rank that computes the loss"
                    assert len(outputs) == len(bins), f"forward returned {len(outputs)} outputs for {len(bins)} micro-batches"
                    where = f"{layout}, weights {weights}, micro-batches {bins}, chunk size {chunk_size}, against {whose}"
                    for name in ("log_probs", "entropy"):
                        parts = [getattr(out, name) for out, members in zip(outputs, bins, strict=True) if members]
                        self._close(torch.cat(parts).cpu(), getattr(wanted, name), f"{name} ({where})")

    def check_gradients(self, norm: float, start: Path) -> None:
        """The backend goes back to ``start`` before every step, and ends one step behind it."""
        for layout in self.layouts:
            for bins in (*self._splits(), [*self._splits()[1], ()]):
                self.backend.load(start)
                report = self._step(bins, layout)
                error = abs(report.grad_norm - norm) / norm
                assert error <= self.tolerance, (
                    f"the gradient's norm is {report.grad_norm:.8g} instead of {norm:.8g} ({layout}, micro-batches {bins})"
                )
                assert not report.skipped, "a step with a finite gradient was skipped"

    def check_copies(self, wanted: ModelOutputs) -> None:
        self.check_outputs(wanted, "ref", "its own before a step of the actor")
        moved = self._forward("actor")
        assert wanted.log_probs is not None
        assert float((moved - wanted.log_probs).abs().max()) > 0, "an optimizer step did not change the actor"
        self.backend.copy_weights("actor", "ref")
        self._close(self._forward("ref"), moved, "log_probs of a copy of the actor")

    def check_resume(self, factory: Callable[[], TrainingBackend], spec: ModelSpec, saved: Path) -> None:
        """``saved`` is the state that the backend is in."""
        before = _weights(self.backend)
        again = factory()
        again.setup(spec)
        again.load(saved)
        _same(_weights(again), before, "weights that were saved and loaded")
        other = _Case(again, self.table, self.layouts, self.tolerance)
        bins, layout = self._splits()[1], self.layouts[0]
        went_on, resumed = self._step(bins, layout), other._step(bins, layout)
        if self.backend.device.type == "cpu":
            assert went_on == resumed, f"the step after a resume reports {resumed} instead of {went_on}"
            _same(_weights(again), _weights(self.backend), "weights after a resumed step")
        again.close()

    def check_export(self, checkpoint: Path, exported: Path, reference: Callable[[Path], Reference]) -> None:
        stored = _stored(checkpoint)
        found = {name: (tuple(t.shape), t.dtype) for name, t in _weights(self.backend).items()}
        odd = sorted(name for name in found.keys() | stored.keys() if found.get(name) != stored.get(name))
        assert not odd, f"exported weights differ from the checkpoint in name, shape or dtype: {odd}"
        self.backend.export_hf(exported)
        wanted, _ = self.expected(reference(exported))
        self.check_outputs(wanted, "actor", "the model that it exported")

    def _step(self, bins: Sequence[tuple[int, ...]], layout: str) -> StepReport:
        return self.backend.train_step(self._batches(bins, layout), REQUEST, _callback)

    def _forward(self, weights: str) -> torch.Tensor:
        bins = self._splits()[0]
        outputs = self.backend.forward(self._batches(bins, self.layouts[0]), REQUEST, weights=weights)
        assert outputs is not None
        return torch.cat([out.log_probs for out in outputs if out.log_probs is not None]).cpu()

    def _weights(self) -> np.ndarray:
        """A weight for each response token; the filler's is 0."""
        weights: np.ndarray = np.random.default_rng(4).uniform(-1, 1, self.table.response_tokens + 1).astype(np.float32)
        weights[-1] = 0
        return weights

    def _batches(self, bins: Sequence[tuple[int, ...]], layout: str) -> list[MicroBatch]:
        fields = {"weight": self._weights()}
        return [pack(self.table, members, fields, layout=layout).to(self.backend.device) for members in bins]

    def _splits(self) -> list[list[tuple[int, ...]]]:
        """In order, so that the outputs laid end to end are the rows' own order."""
        rows = range(self.table.size)
        return [[tuple(rows)], [(0,), (1, 2, 3), tuple(rows[4:])], [(row,) for row in rows]]

    def _close(self, found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
        assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)} instead of {tuple(wanted.shape)}"
        error = float((found - wanted).abs().max())
        assert error <= self.tolerance, f"{what}: differs by {error:.2e}"


def _loss(log_probs: torch.Tensor, entropy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Not linear in the outputs, summed."""
    return (weight * (log_probs.exp() - 0.3 * log_probs + 0.1 * entropy)).sum()


def _callback(batch: MicroBatch, outputs: ModelOutputs) -> torch.Tensor:
    assert outputs.log_probs is not None
    assert outputs.entropy is not None
    return _loss(outputs.log_probs, outputs.entropy, batch.data["weight"])


def _weights(backend: TrainingBackend) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in backend.export_weights()}


def _same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], what: str) -> None:
    assert found.keys() == wanted.keys(), f"{what}: {sorted(found.keys() ^ wanted.keys())} are only on one side"
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), f"{what}: {name} differs"


def _stored(checkpoint: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    from safetensors.torch import load_file

    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        found |= {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in load_file(path).items()}
    return found
