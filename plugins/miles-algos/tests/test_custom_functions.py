"""Functions of the user's in a loss: both forms of each, and what happens when they break their contract."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from miles_algos.checks import problems
from miles_algos.losses.policy_loss import PolicyLoss
from miles_algos.options import (
    ClipOptions,
    CustomLossOptions,
    DualClipOptions,
    EntropyOptions,
    KlLossOptions,
    KlOptions,
    OpsmOptions,
    ReducerOptions,
    RejectionOptions,
    TisOptions,
)
from miles_core.config import AlgorithmOptions
from miles_core.errors import RunError
from miles_core.options.resolve import resolve
from miles_core.plugins import create, load_function
from miles_core.protocols import LossInputs
from miles_core.testing import check_split_invariance, config_of

GROUPS = (
    *(ClipOptions, DualClipOptions, KlLossOptions, KlOptions, EntropyOptions, TisOptions, RejectionOptions, OpsmOptions),
    *(ReducerOptions, AlgorithmOptions),
)
PAGE = Path(__file__).parents[3] / "docs" / "custom-functions.md"

FUNCTIONS = """
import torch
from miles_core.protocols import LossOutputs
from miles_core.training.ragged import broadcast, sample_sum


def likelihood(inputs):
    return -inputs.log_probs * inputs.advantages


def with_metrics(inputs):
    ratio = (inputs.log_probs - inputs.old_log_probs).exp()
    return LossOutputs(-ratio * inputs.advantages, {"ratio": ratio.detach()})


def likelihood_of_lists(args, batch, logits, sum_of_sample_mean):
    targets = torch.cat(batch["unconcat_tokens"])
    log_probs = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    loss = sum_of_sample_mean(-log_probs * torch.cat(batch["advantages"]))
    return loss, {"likelihood": loss.detach(), "clip": torch.tensor(0.2)}


def summed_of_lists(args, batch, logits, sum_of_sample_mean):
    loss, metrics = likelihood_of_lists(args, batch, logits, sum_of_sample_mean)
    return loss, {"likelihood": metrics["likelihood"]}


def likelihood_of_ranks(args, parallel_state, batch, logits, sum_of_sample_mean):
    return likelihood_of_lists(args, batch, logits, sum_of_sample_mean)


def halved(inputs, pg_loss):
    return pg_loss / 2, {"halved": torch.ones_like(pg_loss)}


def rejected(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, total_lengths, response_lengths, **kwargs):
    masks = [m * (t - r < 0) for t, r, m in zip(train_log_probs, rollout_log_probs, loss_masks)]
    assert [len(t) for t in train_log_probs] == list(response_lengths)
    return pg_loss * args.tis_clip, masks, {"kept": torch.cat(masks)}


def thousandth(mask, lengths):
    return mask / 1000


def thousandth_of_terms(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    mask = torch.cat(loss_masks)
    return lambda terms: (terms * mask).sum() / 1000


def sample_mean(mask, lengths):
    return mask / broadcast(sample_sum(mask, lengths).clamp(min=1), lengths)


def mean_of_samples(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    def reduce(terms):
        parts = terms.split(response_lengths)
        return sum((part * mask).sum() / mask.sum().clamp(min=1) for part, mask in zip(parts, loss_masks))
    return reduce


def squared(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    return lambda terms: (terms**2).sum()


def sizes(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    return lambda terms: terms.abs().sum()


def largest(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    return lambda terms: terms.max()


def shifted(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    return lambda terms: terms.sum() + 1


def unreduced(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    return lambda terms: terms


def unrelated(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    return lambda terms: 0.0


def divided_by_nothing(mask, lengths):
    return mask / broadcast(sample_sum(mask, lengths), lengths)


def masks_of_another_shape(args, *, pg_loss, loss_masks, **kwargs):
    return pg_loss, loss_masks[:1], {}


def metrics_that_are_none(inputs, pg_loss):
    return pg_loss, None


def scalar(inputs):
    return inputs.log_probs.sum()


def raising(inputs, pg_loss):
    raise KeyError("weights")


def one_argument(mask):
    return mask
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("functions") / "mine.py"
    path.write_text(FUNCTIONS, encoding="utf-8")
    return str(path)


def batch(**more: Any) -> LossInputs:
    new = torch.tensor([-1.0, -2.0, -0.5, -0.7, -1.1], dtype=torch.float64, requires_grad=True)
    fields: dict[str, Any] = {
        "mask": torch.tensor([1.0, 1, 0, 1, 1], dtype=torch.float64),
        "lengths": (3, 2),
        "old_log_probs": torch.tensor([-1.2, -1.5, -0.5, -0.7, -1.0], dtype=torch.float64),
        "rollout_log_probs": torch.tensor([-1.0, -2.0, -0.5, -0.9, -0.8], dtype=torch.float64),
        "advantages": torch.tensor([1.0, 1, 1, -1, -1], dtype=torch.float64),
        **more,
    }
    return LossInputs(log_probs=new, **fields)


def custom(path: str, **algorithm: Any) -> Any:
    return load_function(
        config_of((CustomLossOptions, AlgorithmOptions), custom_loss_function_path=path, **algorithm),
        CustomLossOptions,
        "custom_loss_function_path",
    )


@pytest.mark.parametrize("name", ["likelihood", "with_metrics"])
def test_custom_loss_function_path(mine: str, name: str) -> None:
    loss = custom(f"{mine}:{name}")
    assert loss.needs == {"old_log_probs", "advantages"}
    inputs = batch()
    out = loss(inputs)
    wanted = -inputs.log_probs if name == "likelihood" else -(inputs.log_probs - inputs.old_log_probs).exp()
    assert torch.equal(out.loss, wanted * inputs.advantages)
    check_split_invariance(loss)


@pytest.mark.parametrize("name", ["likelihood_of_lists", "likelihood_of_ranks"])
@pytest.mark.parametrize("mode", ["sample", "token", "divisor"])
def test_a_loss_of_lists_and_logits(mine: str, name: str, mode: str) -> None:
    algorithm = {"sample": {}, "token": {"calculate_per_token_loss": True}, "divisor": {"loss_length_divisor": 7}}[mode]
    loss = custom(f"{mine}:{name}", **algorithm)
    assert loss.needs == {"old_log_probs", "advantages", "logits"}
    tokens = torch.tensor([1, 0, 2, 1, 1])
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    inputs = batch(logits=logits, tokens=tokens)
    out = loss(inputs)
    mask = inputs.mask
    core = {"sample": mask / torch.tensor([2.0, 2, 2, 2, 2]), "token": mask, "divisor": mask / 7}[mode]
    log_probs = torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0]
    wanted = (core * -log_probs * inputs.advantages).sum()
    assert (core * out.loss).sum().item() == pytest.approx(wanted.item())
    assert (core * out.metrics["likelihood"]).sum().item() == pytest.approx(wanted.item())
    assert (core * out.metrics["clip"]).sum().item() == pytest.approx(0.2)
    found, expected = (torch.autograd.grad(total, logits, retain_graph=True)[0] for total in ((core * out.loss).sum(), wanted))
    assert torch.allclose(found, expected)


def test_a_batch_that_is_all_masked_adds_nothing(mine: str) -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    inputs = batch(logits=logits, tokens=torch.zeros(5, dtype=torch.int64), mask=torch.zeros(5, dtype=torch.float64))
    out = custom(f"{mine}:likelihood_of_lists")(inputs)
    assert out.loss.tolist() == [0] * 5
    out.loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("mode", ["sample", "token"])
def test_a_loss_of_lists_does_not_depend_on_the_split(mine: str, mode: str) -> None:
    options = {"calculate_per_token_loss": mode == "token"}
    check_split_invariance(custom(f"{mine}:summed_of_lists", **options), reductions=[mode])
    with pytest.raises(AssertionError, match="clip is"):
        # A metric that is no sum over the samples.
        check_split_invariance(custom(f"{mine}:likelihood_of_lists", **options), reductions=[mode])


def policy(mine: str, **options: Any) -> PolicyLoss:
    paths = {key: f"{mine}:{value}" if key.endswith("_path") else value for key, value in options.items()}
    return PolicyLoss(config_of(GROUPS, **paths))


def test_custom_tis_function_path(mine: str) -> None:
    plain, fn = PolicyLoss(config_of(GROUPS))(batch()), policy(mine, custom_tis_function_path="halved")
    out = fn(batch())
    assert fn.needs >= {"rollout_log_probs"}
    assert not fn.zero_advantage_is_zero_loss
    assert torch.equal(out.loss, plain.loss / 2)
    assert out.metrics["halved"].tolist() == [1] * 5
    check_split_invariance(fn)


def test_a_custom_correction_goes_with_the_options_of_the_packaged_one(mine: str) -> None:
    """Scripts for miles give both switches, and their functions read the bounds."""
    words = ["--backend", "fsdp", "--algo", "grpo", "--n-samples-per-prompt", "4", "--tis-clip", "5"]
    found = resolve([*words, "--use-tis", "--custom-tis-function-path", f"{mine}:rejected"], environment={})
    assert not found.errors
    assert list(problems(found.config)) == []
    fn = create(found.selection.loss, found.config)
    plain = PolicyLoss(config_of(GROUPS))(batch())
    assert torch.allclose(fn(batch()).loss, 5 * plain.loss * torch.tensor([1.0, 0, 0, 0, 1]))
    assert {"--use-tis", "--tis-clip", "--custom-tis-function-path"} <= found.config.reads()
    alone = resolve([*words, "--custom-tis-function-path", f"{mine}:rejected"], environment={})
    assert list(problems(alone.config)) == []
    (error,) = problems(resolve(words, environment={}).config)
    assert error.code == "M232"


def test_a_correction_called_by_name(mine: str) -> None:
    plain, fn = PolicyLoss(config_of(GROUPS))(batch()), policy(mine, custom_tis_function_path="rejected", tis_clip=3.0)
    out = fn(batch())
    # old - rollout: -0.2, 0.5, masked, 0.2, -0.2
    assert out.metrics["kept"].tolist() == [1, 0, 0, 0, 1]
    assert torch.allclose(out.loss, 3 * plain.loss * torch.tensor([1.0, 0, 0, 0, 1]))


@pytest.mark.parametrize("name", ["thousandth", "thousandth_of_terms"])
@pytest.mark.parametrize("per_token", [False, True])
def test_custom_pg_loss_reducer_function_path(mine: str, name: str, per_token: bool) -> None:
    options = {"entropy_coef": 0.1, "calculate_per_token_loss": per_token}
    inputs = batch(entropy=torch.ones(5, dtype=torch.float64))
    plain = PolicyLoss(config_of(GROUPS, **options))(inputs)
    out = policy(mine, custom_pg_loss_reducer_function_path=name, **options)(inputs)
    core = inputs.mask if per_token else inputs.mask / 2
    entropy = -0.1 * inputs.mask
    assert torch.allclose(core * (out.loss - entropy), plain.metrics["pg_loss"] * inputs.mask / 1000), (
        "the entropy keeps core's weight"
    )
    assert torch.allclose(plain.loss - plain.metrics["pg_loss"], entropy)


def test_the_mean_of_a_sample_is_cores_own_reduction(mine: str) -> None:
    inputs = batch()
    out = policy(mine, custom_pg_loss_reducer_function_path="sample_mean")(inputs)
    assert torch.allclose(out.loss, PolicyLoss(config_of(GROUPS))(inputs).loss)
    out = policy(mine, custom_pg_loss_reducer_function_path="mean_of_samples")(inputs)
    assert torch.allclose(out.loss, PolicyLoss(config_of(GROUPS))(inputs).loss)
    for name in ("thousandth_of_terms", "mean_of_samples"):
        check_split_invariance(policy(mine, custom_pg_loss_reducer_function_path=name))


def test_what_a_masked_token_weighs_is_of_no_account(mine: str) -> None:
    mask = torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64)
    out = policy(mine, custom_pg_loss_reducer_function_path="divided_by_nothing")(batch(mask=mask))
    assert torch.isfinite(out.loss).all()
    assert torch.allclose(out.loss, PolicyLoss(config_of(GROUPS))(batch(mask=mask)).loss)


@pytest.mark.parametrize("name", ["squared", "sizes", "largest", "shifted"])
def test_a_reduction_that_is_not_linear_is_refused(mine: str, name: str) -> None:
    with pytest.raises(RunError, match=r"M423 --custom-pg-loss-reducer-function-path .*not linear"):
        policy(mine, custom_pg_loss_reducer_function_path=name)(batch())


def test_functions_that_break_their_contract(mine: str) -> None:
    for name in ("unreduced", "unrelated"):
        with pytest.raises(RunError, match=r"M423 --custom-pg-loss-reducer-function-path .*makes no scalar of the terms"):
            policy(mine, custom_pg_loss_reducer_function_path=name)(batch())
    with pytest.raises(RunError, match=r"M423 --custom-tis-function-path .*returned \[\(3,\)\] as masks"):
        policy(mine, custom_tis_function_path="masks_of_another_shape")(batch())
    with pytest.raises(RunError, match=r"M423 --custom-tis-function-path .*NoneType as metrics"):
        policy(mine, custom_tis_function_path="metrics_that_are_none")(batch())
    with pytest.raises(RunError, match=r"M423 --custom-tis-function-path .*failed with KeyError"):
        policy(mine, custom_tis_function_path="raising")(batch())
    with pytest.raises(RunError, match=r"M423 --custom-loss-function-path .*as the loss"):
        custom(f"{mine}:scalar")(batch())


def test_signatures_are_checked_before_a_run_starts(mine: str) -> None:
    cases = {
        "--custom-tis-function-path": "one_argument",
        "--custom-pg-loss-reducer-function-path": "one_argument",
        "--custom-loss-function-path": "halved",
    }
    for flag, name in cases.items():
        words = ["--backend", "fsdp", "--algo", "grpo", flag, f"{mine}:{name}"]
        words += ["--loss-type", "custom_loss"] if "loss-function" in flag else []
        (error,) = resolve(words, environment={}).errors
        assert error.code == "M111"
        assert flag in error.line()
    (error,) = resolve(["--backend", "fsdp", "--custom-tis-function-path", f"{mine}:absent"], environment={}).errors
    assert error.code == "M111"


def test_the_loss_is_made_by_its_record(mine: str) -> None:
    words = ["--backend", "fsdp", "--loss-type", "custom_loss", "--custom-loss-function-path", f"{mine}:likelihood"]
    resolved = resolve(words, environment={})
    assert not resolved.errors
    assert resolved.selection.loss is not None
    loss = create(resolved.selection.loss, resolved.config)
    assert torch.equal(loss(batch()).loss, -batch().log_probs * batch().advantages)


def test_the_page_runs() -> None:
    """Every Python block of docs/custom-functions.md, one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    namespace = ModuleType("page").__dict__
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
