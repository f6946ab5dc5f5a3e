"""FP8: what is quantised and how well, and that engines and servers agree on it."""

from __future__ import annotations

import json

import pytest
import torch

from miles_core.config import DebugOptions
from miles_core.options import Config
from miles_core.plugins.events import Configure
from miles_core.weights import WeightPublisher, open_transport
from miles_sglang.checks import check
from miles_sglang.fp8 import BLOCK, OVERRIDE, SCALE, Prepared, is_quantised, quantise
from miles_sglang.options import ServerOptions


@pytest.mark.parametrize("shape", [(256, 384), (100, 130), (1, 1)])
def test_a_matrix_comes_back_within_the_rounding_of_e4m3(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, shape[0])[:, None]
    found, scales = quantise(weight)
    assert found.dtype == torch.float8_e4m3fn
    assert scales.shape == (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))
    whole = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: shape[0], : shape[1]]
    back = found.float() * whole
    # Three bits of mantissa, and subnormal numbers below 2**-6 of a block's largest over 448.
    assert ((back - weight).abs() <= weight.abs() / 16 + whole * 2**-10).all()
    # The largest number of a block is kept: nothing overflows.
    assert back.abs().max() == pytest.approx(weight.abs().max().item(), rel=1e-5)


def test_zeros_stay_zeros():
    found, scales = quantise(torch.zeros(128, 128))
    assert not found.float().any()
    assert torch.isfinite(scales).all()


def test_matrices_of_layers_are_quantised_and_nothing_else():
    names = {
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.0.mlp.experts.3.up_proj.weight": (8, 8),
        "model.layers.0.mlp.gate.weight": (8, 8),
        "model.layers.0.input_layernorm.weight": (8,),
        "model.layers.0.self_attn.q_proj.bias": (8,),
        "model.embed_tokens.weight": (8, 8),
        "lm_head.weight": (8, 8),
    }
    assert [name for name, shape in names.items() if is_quantised(name, shape)] == list(names)[:2]
    export = [(name, torch.ones(shape)) for name, shape in names.items()]
    sent = dict(Prepared(Config.of(ServerOptions(quantization="fp8")))(export))
    assert set(sent) == {*names, *(name + SCALE for name in list(names)[:2])}
    assert dict(Prepared(Config.of(ServerOptions()))(export)).keys() == names.keys()


def test_an_engine_is_told_the_form_and_wants_the_scales(serve, weights, tmp_path):
    server = {"quantization": "fp8", "json_model_override_args": '{"rope_theta": 3}'}
    served = serve(server=server)
    info = served.engine.info()
    assert json.loads(info["json_model_override_args"]) == {**OVERRIDE, "rope_theta": 3}
    assert (info["quantization"], info["load_format"]) == ("fp8", "dummy")
    prepared = dict(Prepared(Config.of(ServerOptions(**server)))(weights(1).items()))
    served.engine.pause()
    served.engine.begin_weights(1)
    with pytest.raises(Exception, match=r"M516.*7 names are not|M516.*missing"):
        served.engine.commit_weights(1)
    assert served.engine._weights._names == set(prepared)


def test_published_scales_are_those_of_the_weights(served, weights, tmp_path):
    # The stand-in holds no FP8: what arrives is looked at in the files that are sent.
    transport = open_transport("disk", tmp_path, "trainer-0")
    sent = list(Prepared(Config.of(ServerOptions(quantization="fp8")))(weights(1).items()))
    seen = {}

    class Engine:
        name = "engine"

        def call(self, method, *args):
            if method == "receive_weights":
                from safetensors.torch import load_file

                seen.update(load_file(args[0].handle["path"]))
            return

        def wait(self, futures, timeout):
            return [None]

    WeightPublisher(transport, bucket_bytes=1 << 20).publish(1, sent, [Engine()])
    name = "model.layers.0.mlp.up_proj.weight"
    weight, scale = seen[name], seen[name + SCALE]
    assert (weight.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (weight.float() * scale).sub(weights(1)[name]).abs().max() < 0.2
    transport.close()


@pytest.mark.parametrize(
    ("server", "groups", "said"),
    [
        ({"quantization": "awq"}, [], "M524 miles-sglang: --sglang-quantization awq cannot be used"),
        ({"quantization": "fp8"}, [DebugOptions(debug_rollout_only=True)], "does not go with --debug-rollout-only"),
        ({"quantization": "fp8", "load_format": "pt"}, [], "does not go with --sglang-load-format"),
        ({"quantization": "fp8", "json_model_override_args": "[]"}, [], "M510 miles-sglang: --sglang-json-model-override-args"),
        ({"quantization": "fp8"}, [], ""),
    ],
)
def test_what_goes_with_fp8(server, groups, said):
    errors = []
    check(Configure(Config.of(ServerOptions(**server), *groups), errors.append))
    lines = [error.line() for error in errors]
    assert [line for line in lines if said in line] if said else not lines
