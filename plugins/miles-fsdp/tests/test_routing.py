"""Recording and replaying the routes of mixtures of experts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import (
    FlexOlmoConfig,
    FlexOlmoForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from miles_core.errors import RunError, UsageError
from miles_fsdp.options import FsdpOptions
from miles_fsdp.routing import RouterReplay

pytestmark = pytest.mark.usefixtures("one_rank")

LAYERS, EXPERTS, TOP_K, HIDDEN = 3, 8, 3, 32
COMMON = {
    "vocab_size": 131,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "num_experts_per_tok": TOP_K,
}
QWEN = {"num_experts": EXPERTS, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
PLAIN = FsdpOptions(optimizer="sgd", attn_implementation="sdpa")
RECOMPUTED = FsdpOptions(optimizer="sgd", attn_implementation="sdpa", gradient_checkpointing=True)


def models() -> dict:
    """A tiny random model of each kind; the second layer of ``qwen3_moe`` is dense."""
    shared = {"shared_expert_intermediate_size": 16, "norm_topk_prob": False}
    qwen3 = {"head_dim": 8, "norm_topk_prob": True, "mlp_only_layers": [1]}
    return {
        "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**COMMON, **QWEN, **qwen3)),
        "qwen2_moe": lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**COMMON, **QWEN, **shared)),
        "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**COMMON, num_local_experts=EXPERTS)),
        "olmoe": lambda: OlmoeForCausalLM(OlmoeConfig(**COMMON, num_experts=EXPERTS)),
        "flex_olmo": lambda: FlexOlmoForCausalLM(FlexOlmoConfig(**COMMON, num_experts=EXPERTS, pad_token_id=0)),
    }


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A folder with a checkpoint of each kind."""
    root = tmp_path_factory.mktemp("experts")
    for name, make in models().items():
        torch.manual_seed(3)
        make().save_pretrained(root / name)
    return root


def with_routes(batch, routes):
    return dataclasses.replace(batch, routes=routes)


def foreign(batch, seed=5):
    """Random distinct experts for every token."""
    order = torch.rand(batch.num_tokens, LAYERS, EXPERTS, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return order[..., :TOP_K].to(torch.int16)


def recorded(tiny, backend, batch):
    (outputs,) = backend.forward([batch], dataclasses.replace(tiny.REQUEST, routes=True))
    return outputs


@pytest.mark.parametrize("model", ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "flex_olmo"])
@pytest.mark.parametrize("layout", ["thd", "bshd"])
def test_replaying_its_own_routes_changes_not_a_bit(tiny, experts, model, layout):
    batch = tiny.micro_batch(tiny.samples(6), layout, padding=5 if layout == "thd" else 0)
    backend = tiny.make_backend(experts / model, options=PLAIN, **tiny.PLAIN_SGD)
    plain = backend.forward([batch], tiny.REQUEST)[0]
    outputs = recorded(tiny, backend, batch)
    assert torch.equal(outputs.log_probs, plain.log_probs)
    assert outputs.routes.shape == (batch.num_tokens, LAYERS, TOP_K)
    assert outputs.routes.dtype == torch.int16
    again = with_routes(batch, outputs.routes)
    assert torch.equal(backend.forward([again], tiny.REQUEST)[0].log_probs, plain.log_probs)
    free = tiny.gradients(backend, [batch])
    replayed = tiny.gradients(tiny.make_backend(experts / model, options=PLAIN, **tiny.PLAIN_SGD), [again])
    assert all(torch.equal(free[name], replayed[name]) for name in free)


def test_layers_without_experts_have_no_routes(tiny, experts):
    backend = tiny.make_backend(experts / "qwen3_moe", options=PLAIN)
    routes = recorded(tiny, backend, tiny.micro_batch(tiny.samples(3))).routes
    assert (routes[:, 1] == -1).all()
    assert (routes[:, [0, 2]] >= 0).all()
    assert (routes < EXPERTS).all()


def dense_oracle(block, hidden, chosen):
    """One MoE layer of Qwen3 in float64, every expert on every token, from the definition."""
    weights = {name: p.detach().double().requires_grad_() for name, p in block.named_parameters()}
    scores = torch.softmax(hidden @ weights["gate.weight"].T, -1)
    mask = torch.zeros_like(scores).scatter(1, chosen, 1.0)
    gates = scores * mask
    gates = gates / gates.sum(-1, keepdim=True)
    gate, up = torch.einsum("th,eoh->teo", hidden, weights["experts.gate_up_proj"]).chunk(2, -1)
    out = torch.einsum("tei,ehi->teh", torch.nn.functional.silu(gate) * up, weights["experts.down_proj"])
    return (gates[..., None] * out).sum(1), weights


def test_foreign_routes_give_what_the_definition_gives(tiny, experts):
    """One layer against a dense one in float64: outputs, and the gradients of router, experts and input."""
    torch.manual_seed(1)
    model = models()["qwen3_moe"]()
    replay = RouterReplay(model)
    batch = tiny.micro_batch(tiny.samples(4))
    batch = with_routes(batch, foreign(batch))
    block = model.model.layers[0].mlp
    hidden = torch.randn(1, batch.num_tokens, HIDDEN)
    upstream = torch.randn(batch.num_tokens, HIDDEN)
    wide = hidden[0].double().requires_grad_()
    wanted, weights = dense_oracle(block, wide, batch.routes[:, 0].long())
    (wanted * upstream.double()).sum().backward()
    narrow = hidden.clone().requires_grad_()
    free = block(narrow).detach()
    replay.start(batch)
    found = block(narrow)
    (found[0] * upstream).sum().backward()
    assert torch.allclose(found[0].double(), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, free, atol=1e-2)
    assert torch.allclose(narrow.grad[0].double(), wide.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in block.named_parameters():
        assert weights[name].grad.abs().max() > 0
        assert tiny.furthest({name: parameter.grad.double()}, {name: weights[name].grad}) < 1e-5, name
    replay.stop()
    assert torch.equal(block(narrow), free)


def test_foreign_routes_reach_the_routers(tiny, experts):
    batch = tiny.micro_batch(tiny.samples(6))
    free = tiny.gradients(tiny.make_backend(experts / "qwen3_moe", options=PLAIN, **tiny.PLAIN_SGD), [batch])
    backend = tiny.make_backend(experts / "qwen3_moe", options=PLAIN, **tiny.PLAIN_SGD)
    plain = backend.forward([batch], tiny.REQUEST)[0].log_probs
    batch = with_routes(batch, foreign(batch))
    assert not torch.allclose(backend.forward([batch], tiny.REQUEST)[0].log_probs, plain, atol=1e-2)
    found = tiny.gradients(backend, [batch])
    for layer in (0, 2):
        name = f"model.layers.{layer}.mlp.gate.weight"
        assert found[name].abs().max() > 0
        assert not torch.allclose(found[name], free[name])


def rows_of(batch):
    """The flattened positions of each sample's tokens."""
    if batch.cu_seqlens is not None:
        bounds = batch.cu_seqlens.tolist()
        return [range(bounds[i], bounds[i + 1]) for i in range(len(batch.rows))]
    longest = batch.tokens.shape[1]
    return [range(i * longest, i * longest + int(n)) for i, n in enumerate(batch.attention_mask.sum(1).tolist())]


def split(tiny, chosen, routes, sizes, layout):
    """Micro-batches of these sizes with each sample's own routes."""
    batches, first = [], 0
    for size in sizes:
        batch = tiny.micro_batch(chosen[first : first + size], layout)
        own = torch.full((batch.num_tokens, LAYERS, TOP_K), -1, dtype=torch.int16)
        for i, positions in enumerate(rows_of(batch)):
            own[list(positions)] = routes[first + i]
        batches.append(with_routes(batch, own))
        first += size
    return batches


@pytest.mark.parametrize("model", ["qwen3_moe", "mixtral"])
def test_layout_split_and_recomputation_do_not_matter(tiny, experts, model):
    chosen = tiny.samples(8)
    whole = tiny.micro_batch(chosen)
    routes = [foreign(whole)[list(positions)] for positions in rows_of(whole)]
    reference = None
    for options, sizes, layout in [
        (PLAIN, [8], "thd"),
        (PLAIN, [1] * 8, "thd"),
        (PLAIN, [3, 5], "bshd"),
        (RECOMPUTED, [8], "thd"),
        (RECOMPUTED, [3, 5], "thd"),
        (RECOMPUTED, [2, 6], "bshd"),
    ]:
        backend = tiny.make_backend(experts / model, options=options, **tiny.PLAIN_SGD)
        batches = split(tiny, chosen, routes, sizes, layout)
        log_probs = torch.cat([o.log_probs for o in backend.forward(batches, tiny.REQUEST)])
        found = tiny.gradients(backend, batches), log_probs
        reference = reference or found
        assert torch.allclose(found[1], reference[1], atol=1e-5), (sizes, layout)
        assert tiny.furthest(found[0], reference[0]) < 2e-5, (sizes, layout)


@pytest.mark.parametrize("replay", [True, False])
def test_recomputed_layers_replay_the_same(tiny, experts, replay):
    """What the recomputation saves must be what the forward pass saved, bit for bit."""
    batch = tiny.micro_batch(tiny.samples(6))
    batch = with_routes(batch, foreign(batch)) if replay else batch
    kept, again = (
        tiny.gradients(tiny.make_backend(experts / "qwen3_moe", options=options, **tiny.PLAIN_SGD), [batch])
        for options in (PLAIN, RECOMPUTED)
    )
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def disturb(backend, scale):
    """Noise on the routers' weights."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in backend._sets["actor"].model.named_parameters():
        if name.endswith("gate.weight"):
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def test_replay_takes_away_what_other_choices_do_to_the_ratio(tiny, experts):
    """Routers that moved by a hair choose other experts for some tokens, whose log-probs jump; with the recorded choice only
    the gates move, and the log-ratio goes to 0 with the disturbance."""
    batch = tiny.micro_batch(tiny.samples(300))
    largest = {}
    for scale in (1e-2, 1e-3):
        backend = tiny.make_backend(experts / "qwen3_moe", options=PLAIN)
        old = recorded(tiny, backend, batch)
        disturb(backend, scale)
        new = recorded(tiny, backend, batch)
        flipped = (old.routes.sort(-1).values != new.routes.sort(-1).values).any(-1).any(-1)
        assert flipped.any(), "no choice changed"
        held = backend.forward([with_routes(batch, old.routes)], tiny.REQUEST)[0].log_probs
        largest[scale] = ((new.log_probs - old.log_probs).abs().max().item(), (held - old.log_probs).abs().max().item())
        # What the old choice did not touch is the same either way.
        same = torch.isclose(new.log_probs, held, atol=1e-6)
        assert same.sum() > same.numel() // 2
    assert all(free > 3 * held for free, held in largest.values()), largest
    assert largest[1e-3][1] < 0.15 * largest[1e-2][1], "linear in the disturbance"
    assert largest[1e-3][0] > 1.0, "a flip does not get smaller with the disturbance"


def test_routes_do_not_outlive_their_pass(tiny, experts):
    batch = tiny.micro_batch(tiny.samples(4))
    backend = tiny.make_backend(experts / "qwen3_moe", options=PLAIN, spec={"copies": ("ref",)})
    plain = backend.forward([batch], tiny.REQUEST, weights="ref")[0].log_probs
    backend.forward([with_routes(batch, foreign(batch))], tiny.REQUEST)
    assert torch.equal(backend.forward([batch], tiny.REQUEST)[0].log_probs, plain)
    backend.train_step([with_routes(batch, foreign(batch))], tiny.REQUEST, lambda b, o: 0.0 * tiny.loss(b, o))
    assert torch.equal(backend.forward([batch], tiny.REQUEST, weights="ref")[0].log_probs, plain)
    assert backend.forward([batch], tiny.REQUEST)[0].routes is None


def test_routes_of_another_model_are_refused(tiny, experts):
    batch = tiny.micro_batch(tiny.samples(4))
    backend = tiny.make_backend(experts / "qwen3_moe", options=PLAIN)
    with pytest.raises(RunError, match=r"M434.*\[tokens|M434.*experts per token"):
        backend.forward([with_routes(batch, foreign(batch)[:, :2])], tiny.REQUEST)
    assert backend.forward([batch], tiny.REQUEST)[0].log_probs is not None


def test_a_model_without_known_routers_is_refused(tiny, checkpoints):
    backend = tiny.make_backend(checkpoints / "qwen3", options=PLAIN)
    with pytest.raises(UsageError, match=r"M435.*qwen3"):
        recorded(tiny, backend, tiny.micro_batch(tiny.samples(2)))
