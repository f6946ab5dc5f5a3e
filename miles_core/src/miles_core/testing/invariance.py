"""Whether a loss trains the same however its batch is split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from miles_core.protocols.backend import OutputRequest
from miles_core.protocols.loss import Loss, LossInputs
from miles_core.testing.random_rows import random_rows
from miles_core.testing.toy_model import ToyConfig, ToyModel
from miles_core.training.logprobs import token_outputs
from miles_core.training.objective import SAMPLE_WEIGHT, WEIGHT, Objective
from miles_core.training.pack import pack
from miles_core.training.reduce import sample_weights, token_weights
from miles_core.training.split import count_step
from miles_core.training.table import RowTable

_Result = tuple[dict[str, torch.Tensor], dict[str, float]]


def check_split_invariance(
    loss: Loss,
    *,
    samples: int = 13,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-5,
    temperature: float = 1.0,
    reductions: Sequence[str] = ("sample", "token"),
) -> None:
    """Compare gradients and metrics of a loss over every way to split one batch with those of the samples one by one.

    Ragged samples with partial and full masks go through a tiny transformer: packed and padded, in one micro-batch, in several of
    unequal sizes, one by one, with a micro-batch that holds nothing, on one rank and on two with unequal numbers of tokens,
    averaged per sample and per token. The inputs that the loss may need are random, except that they are all 0 at one sample.

    Args:
        loss: to check; it gets every field of ``LossInputs``, of which logits only when it needs them. One that needs ``values`` is
            that of a critic, and gets those of a value head in the place of log-probs and entropy, which are 0.
        samples: in the batch.
        seed: of batch and model.
        dtype: of the model, float64 or float32.
        tolerance: of the largest difference, relative to the largest entry.
        temperature: of the log-probs.
        reductions: those to average by, of a loss that is made for one of them: ``sample``, ``token``.

    Raises:
        AssertionError: which split differs, in what, and by how much.
    """
    rows = random_rows(samples, seed=seed)
    critic = "values" in loss.needs
    model = ToyModel.random(ToyConfig(value_head=critic), seed).to(dtype)
    request = OutputRequest(
        log_probs=not critic, entropy=not critic, values=critic, logits="logits" in loss.needs, temperature=temperature
    )
    table = RowTable(rows)
    fields = _random_fields(table, seed)
    count = count_step(rows)
    for reduction in reductions:
        per_token = {"sample": False, "token": True}[reduction]
        weights = {WEIGHT: token_weights(table, count, per_token=per_token), SAMPLE_WEIGHT: sample_weights(table)}
        wanted = _one_by_one(loss, model, table, fields, request, count.tokens if per_token else None)
        for layout in ("thd", "bshd"):
            for name, bins in _splits(samples, seed).items():
                found = _split(loss, model, table, fields | weights, request, layout, bins)
                case = f"{layout}, {name}, averaged per {reduction}"
                _compare(found, wanted, tolerance, case)


def _random_fields(table: RowTable, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed + 1)
    fields = {"mask": table.mask}
    for name in ("old_log_probs", "rollout_log_probs", "ref_log_probs"):
        fields[name] = rng.uniform(-5, -0.5, len(table.mask)).astype(np.float32)
    advantages = np.repeat(rng.normal(size=table.size + 1), table.response_lengths).astype(np.float32)
    advantages[: table.response_lengths[0]] = 0
    values = rng.normal(size=len(table.mask)).astype(np.float32)
    return fields | {"advantages": advantages, "returns": advantages, "old_values": values}


def _splits(samples: int, seed: int) -> dict[str, list[tuple[int, ...]]]:
    order = np.random.default_rng(seed + 2).permutation(samples).tolist()
    third = max(samples // 3, 1)
    return {
        "one micro-batch": [tuple(range(samples))],
        "one by one": [(i,) for i in range(samples)],
        "three unequal micro-batches": [tuple(order[:1]), tuple(order[1 : third + 1]), tuple(order[third + 1 :])],
        "an empty micro-batch": [tuple(range(samples)), ()],
        "two ranks": [tuple(range(0, samples, 2)), tuple(range(1, samples, 2))],
        "two ranks of unequal sizes": [tuple(order[:2]), tuple(order[2:third]), tuple(order[third:]), ()],
    }


def _split(
    loss: Loss,
    model: ToyModel,
    table: RowTable,
    fields: dict[str, np.ndarray],
    request: OutputRequest,
    layout: str,
    bins: Sequence[tuple[int, ...]],
) -> _Result:
    objective = Objective(loss)
    model.zero_grad()
    for members in bins:
        batch = pack(table, members, fields, layout=layout)
        logits = model.head(model.response_hidden(batch))
        outputs = token_outputs(logits, batch.targets, request, entropy_grad=True)
        torch.autograd.backward(objective(batch, outputs))
    return _gradients(model), {name: float(value) for name, value in objective.terms.items() if name != "entropy"}


def _one_by_one(
    loss: Loss, model: ToyModel, table: RowTable, fields: dict[str, np.ndarray], request: OutputRequest, tokens: float | None
) -> _Result:
    """Sample after sample, by the formula; ``tokens`` of the step to average over, None to average per sample."""
    model.zero_grad()
    totals: dict[str, float] = {}
    for i, row in enumerate(table.rows):
        response = row.response_length
        ids = torch.from_numpy(row.tokens.astype(np.int64))
        outputs = _plain_outputs(model(ids)[-response - 1 : -1], ids[-response:], request)
        index = table.response_index(np.array([i]))
        given = {name: torch.from_numpy(values[index]) for name, values in fields.items()}
        result = loss(LossInputs(lengths=(response,), tokens=ids[-response:], **outputs, **given))
        mask = given["mask"]
        divisor = tokens if tokens is not None else max(float(mask.sum()), 1.0) * len(table.rows)
        share = (mask * torch.where(mask != 0, result.loss, 0)).sum() / divisor
        torch.autograd.backward(share)
        for name, term in {"loss": result.loss.detach(), **result.metrics}.items():
            totals[name] = totals.get(name, 0.0) + float((mask * torch.where(mask != 0, term, 0)).sum()) / divisor
    return _gradients(model), totals


def _plain_outputs(heads: torch.Tensor, targets: torch.Tensor, request: OutputRequest) -> dict[str, torch.Tensor]:
    """Fields of ``LossInputs``, from the outputs of the head in front of each response token, ``[R, V]`` or ``[R, 1]``."""
    if request.values:
        return {"values": heads[:, 0], "log_probs": torch.zeros_like(heads[:, 0])}
    every = torch.log_softmax(heads / request.temperature, -1)
    found = {"log_probs": every.gather(1, targets[:, None])[:, 0], "entropy": -(every.exp() * every).sum(-1)}
    return found | {"logits": heads / request.temperature} if request.logits else found


def _gradients(model: ToyModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}


def _compare(found: _Result, wanted: _Result, tolerance: float, case: str) -> None:
    for name, gradient in wanted[0].items():
        scale = max(float(gradient.abs().max()), 1e-12)
        error = float((found[0][name] - gradient).abs().max()) / scale
        assert error <= tolerance, f"{case}: the gradient of {name} differs by {error:.2e} from that of the samples one by one"
    assert found[1].keys() == wanted[1].keys(), f"{case}: metrics {sorted(found[1])} instead of {sorted(wanted[1])}"
    for name, value in wanted[1].items():
        error = abs(found[1][name] - value) / max(abs(value), 1e-3)
        assert error <= max(tolerance, 1e-5), f"{case}: {name} is {found[1][name]:.8g} instead of {value:.8g}"
