"""Multi-token prediction, in two processes that share the work in every way, against the formula in plain PyTorch."""

from __future__ import annotations

import json

import pytest
import torch
from miles_megatron.context import Context
from miles_megatron.rows import Rows
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
BOUND = 1e-4
FACTOR = 0.7
"""As ``mtp_ranks.py`` has it."""


@pytest.fixture(scope="module")
def wanted(helpers, root):
    """By model: log-probs of each row, losses of the layers, and the gradients of all of them together."""
    return {model: plain(helpers, root / model) for model in ("mimo", "mimo_tied")}


def plain(helpers, folder):
    """The formula, read off row by row."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

    said = json.loads((folder / "config.json").read_text())
    number = said.pop("num_nextn_predict_layers")
    config = Qwen2Config(**{**said, "model_type": "qwen2", "architectures": None})
    config._attn_implementation = "eager"
    tensors = load_file(folder / "model.safetensors")
    trunk = Qwen2ForCausalLM(config).eval()
    trunk.load_state_dict({name: tensor for name, tensor in tensors.items() if "mtp" not in name}, strict=False)
    layers = []
    for k in range(number):
        layer = torch.nn.Module()
        for norm in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
            layer.add_module(norm, Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps))
        layer.input_proj = torch.nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        layer.decoder = Qwen2DecoderLayer(config, layer_idx=0)
        names = {name: f"model.mtp_layers.{k}.{name.removeprefix('decoder.')}" for name in layer.state_dict()}
        layer.load_state_dict({name: tensors[stored] for name, stored in names.items()})
        layers.append(layer)
    sums, counts, log_probs = [torch.zeros(())] * number, [0.0] * number, []
    for tokens, response, _ in helpers.mtp_samples():
        ids = torch.tensor(tokens)
        size, mask = len(tokens), [0.0] * (len(tokens) - response) + helpers.mtp_mask(tokens, response)
        with torch.no_grad():
            state = trunk.model(ids[None], use_cache=False).last_hidden_state
            every = torch.log_softmax(trunk.lm_head(state)[0].float() / 0.7, -1)
        log_probs.append(every[size - response - 1 : -1].gather(1, ids[size - response :, None])[:, 0])
        for k, layer in enumerate(layers, 1):
            # Positions whose token k further on does not exist come last, and nobody sees them.
            state = state[:, : size - k]
            if not state.shape[1]:
                break
            embedded = trunk.model.embed_tokens(ids[k:][None]).detach()
            both = torch.cat([layer.hidden_layernorm(state), layer.token_layernorm(embedded)], -1)
            state = layer.final_layernorm(decoded(layer.decoder, layer.input_proj(both), trunk))
            for t in range(size - k - 1):
                logits = state[0, t] @ trunk.lm_head.weight.detach().T
                sums[k - 1] = sums[k - 1] - mask[t + k + 1] * torch.log_softmax(logits, -1)[tokens[t + k + 1]]
                counts[k - 1] += mask[t + k + 1]
    losses = [total / count for total, count in zip(sums, counts, strict=True)]
    (FACTOR / number * sum(losses)).backward()
    pairs = [(k, name, p) for k, layer in enumerate(layers) for name, p in layer.named_parameters()]
    gradients = {f"model.mtp_layers.{k}.{name.removeprefix('decoder.')}": param.grad for k, name, param in pairs}
    return log_probs, [loss.item() for loss in losses], gradients


def decoded(layer, state, trunk):
    """transformers' decoder layer on one row, with its own mask."""
    size = state.shape[1]
    angles = trunk.model.rotary_emb(state, torch.arange(size)[None])
    mask = torch.full((size, size), torch.finfo(torch.float32).min).triu(1)[None, None]
    found = layer(state, attention_mask=mask, position_embeddings=angles)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize(("layout", "ranks"), [("thd", 1), ("thd", 2), ("thd", 4), ("bshd", 1)])
def test_what_is_seen_and_predicted_stays_in_its_row(helpers, layout, ranks):
    chosen = helpers.mtp_samples()
    batch = helpers.mtp_batch(chosen, layout)
    length = -(-batch.tokens.shape[1] // ranks) * ranks
    for k in (1, 2, 3):
        seen, predicted = {}, []
        for rank in range(ranks):
            context = Context(None, rank, ranks) if ranks > 1 else None
            rows = Rows.of(batch, length=length, context=context, compute=torch.float32, ahead=3)
            ahead = rows.ahead[k - 1]
            places = torch.arange(rows.tokens.numel()) * ranks + rank
            seen |= dict(zip(places.tolist(), ahead.tokens.flatten().tolist(), strict=True))
            pairs = zip(ahead.index * ranks + rank, ahead.targets, ahead.weight, strict=True)
            predicted += [(int(place), int(target), float(weight)) for place, target, weight in pairs]
        wanted, start = [], 0
        for number, (tokens, response, _) in enumerate(chosen):
            start = number * length if layout == "bshd" else start
            size, mask = len(tokens), [0.0] * (len(tokens) - response) + helpers.mtp_mask(tokens, response)
            assert [seen[start + t] for t in range(size)] == [*tokens[k:], *[0] * min(k, size)]
            wanted += [(start + t, tokens[t + k + 1], 1.0) for t in range(size - k - 1) if mask[t + k + 1]]
            start += size
        assert sorted(predicted) == wanted


def test_trunks_have_the_log_probs_of_transformers(helpers, results, wanted):
    seen = 0
    for name, (model, *_) in helpers.MTP_SPLITS.items():
        for rank in results:
            each = rank["mtp_splits"][name]
            if each["log_probs"] is not None:
                start, step = each["data"]
                assert torch.allclose(each["log_probs"], torch.cat(wanted[model][0][start::step]), atol=BOUND), name
                seen += 1
    assert seen >= len(helpers.MTP_SPLITS)


def test_losses_and_gradients_are_the_formulas_however_the_work_is_shared(tiny, helpers, results, wanted):
    for name, (model, *_) in helpers.MTP_SPLITS.items():
        _, losses, gradients = wanted[model]
        for rank in results:
            each = rank["mtp_splits"][name]
            assert tiny.furthest(each["gradients"], gradients) < BOUND, name
            if each["log_probs"] is not None:
                mean = {"mtp_loss": sum(losses) / len(losses)}
                single = {f"mtp_loss_{k}": loss for k, loss in enumerate(losses, 1)} if len(losses) > 1 else {}
                assert each["metrics"] == pytest.approx({**mean, **single}, rel=1e-5), name


def test_trunks_do_not_learn_of_it_and_layers_learn_of_nothing_else(helpers, results):
    for rank in results:
        for name in helpers.MTP_SPLITS:
            each = rank["mtp_splits"][name]
            assert each["loaded"], name
            if name in helpers.MTP_TWICE:
                assert each["frozen"], name
                assert each["trunk"], name


def test_the_loss_falls_and_states_go_on(results):
    for number, rank in enumerate(results):
        states = dict(rank["mtp_states"])
        assert states.pop("exported")
        for name, each in states.items():
            assert each["taken"], name
            assert each["moved"] > 1e-3, name
            if each["off"] is not None:
                assert each["off"] <= (0 if name == "DP2" else 1e-5), name
            losses = each["losses"]
            if name == "off to on":
                assert losses == [None] * 3
            elif number:
                assert losses[-1] < 0.95 * losses[0], (name, losses)


def test_what_was_trained_is_exported_for_every_reader(results, root):
    """An exported directory is one that transformers, and so the other backend and engine, loads."""
    from transformers import AutoModelForCausalLM

    from miles_core.hf import register_families

    register_families()
    assert results
    model, report = AutoModelForCausalLM.from_pretrained(root / "mtp-exported", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(model).__name__ == "MiMoForCausalLM"


def test_critics_and_other_models_have_none(results):
    for rank in results:
        others = rank["mtp_others"]
        assert others["critic"] == ({}, [])
        assert others["copies"]
        assert others["back"]
        assert others["one of two"] == ({"model.mtp_layers.0"}, ["mtp_loss"])
        assert others["nothing to predict"] == ({}, False)


def test_a_checkpoint_that_lacks_a_tensor_is_one_line(results):
    for rank in results:
        assert rank["mtp_others"]["lost"] == "M342 1 are missing (model.mtp_layers.1.input_proj.weight)"
