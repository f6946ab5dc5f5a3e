"""The engine over HTTP, its start and its plugin record."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import aiohttp
import pytest
from safetensors.torch import load_file, save_file

from miles_core.accelerator.device import accelerator
from miles_core.config import ClusterOptions
from miles_core.errors import MilesError
from miles_core.options import Config
from miles_core.plugins.events import Configure
from miles_core.protocols import EngineLaunch
from miles_core.samples import GenerateRequest, SamplingParams
from miles_transformers.engine import TransformersEngine
from miles_transformers.model import device_of
from miles_transformers.options import TransformersOptions
from miles_transformers.plugin import miles_configure, miles_engine


def call(url, path, body=None, method=None):
    """Status and JSON document of one HTTP call."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, method=method or ("GET" if body is None else "POST"))
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
            return response.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_generate_single_and_batched(serve, requests_of):
    served = serve()
    request = requests_of([6], max_new_tokens=5, ignore_eos=True)[0]
    params = {"max_new_tokens": 5, "ignore_eos": True, "temperature": 1.0, "sampling_seed": request.params.sampling_seed}
    body = {"input_ids": request.input_ids, "sampling_params": params, "return_logprob": True, "rid": "x"}
    expected = served.generate([request])[request.rid]
    status, answer = call(served.url, "/generate", body)
    assert status == 200
    assert tuple(answer["output_ids"]) == expected.output_ids
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 5}
    assert (meta["id"], meta["prompt_tokens"], meta["completion_tokens"], meta["weight_version"]) == ("x", 6, 5, "0")
    assert [(p[0], p[1], p[2]) for p in meta["output_token_logprobs"]] == [
        (lp, i, None) for lp, i in zip(expected.log_probs, expected.output_ids, strict=True)
    ]
    status, answers = call(
        served.url, "/generate", {**body, "input_ids": [request.input_ids] * 2, "rid": ["a", "b"], "return_logprob": False}
    )
    assert status == 200
    assert [a["output_ids"] for a in answers] == [list(expected.output_ids)] * 2
    assert "output_token_logprobs" not in answers[0]["meta_info"]


def test_single_calls_give_the_same_as_a_batch(serve, requests_of):
    served = serve()
    requests = requests_of([3, 8, 12], samples=2, max_new_tokens=10)
    batched, single = served.generate(requests), served.generate(requests, batch_stream=False)
    assert {k: v.output_ids for k, v in batched.items()} == {k: v.output_ids for k, v in single.items()}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([99], "token id 99 is outside of the vocabulary of 64"),
        ([3] * 128, "the prompt has 128 tokens and the context holds 128, response included"),
        ([], "input_ids must be a list of token ids"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(serve, ids, message):
    served = serve()
    status, answer = call(served.url, "/generate", {"input_ids": ids, "sampling_params": {"max_new_tokens": 2}})
    assert status == 400
    assert message in answer["error"]["message"]


def test_control_routes(serve, checkpoint):
    served = serve()
    url = served.url
    assert call(url, "/health") == (200, None)
    assert call(url, "/health_generate") == (200, None)
    info = call(url, "/server_info")[1]
    assert info["context_length"] == 128
    assert info["decode_steps"] == 1
    expected = {"model_path": str(checkpoint()), "tokenizer_path": str(checkpoint()), "is_generation": True, "weight_version": "0"}
    for path in ("/model_info", "/get_model_info", "/get_weight_version"):
        assert call(url, path) == (200, expected)
    assert call(url, "/pause_generation", {"mode": "retract"})[0] == 200
    assert call(url, "/health_generate") == (200, None)
    assert call(url, "/pause_generation", {"mode": "sleep"})[0] == 400
    assert call(url, "/flush_cache", method="POST")[0] == 200
    assert call(url, "/release_memory_occupation", {}) == (200, None)
    assert call(url, "/continue_generation", {})[0] == 400
    assert call(url, "/resume_memory_occupation", {"tags": ["weights", "kv_cache"]}) == (200, None)
    assert call(url, "/continue_generation", {})[0] == 200
    assert call(url, "/abort_request", {"abort_all": True}) == (200, None)
    assert call(url, "/abort_request", {"rid": "nobody"}) == (200, None)
    assert call(url, "/abort_request", {})[0] == 400


def test_a_client_that_goes_away_frees_its_slots(serve):
    served = serve()
    body = {"input_ids": [[5, 6, 7]] * 4, "sampling_params": {"max_new_tokens": 100, "ignore_eos": True}, "stream": True}
    scheduler = served.engine.scheduler
    step = scheduler.decoder.step

    async def main():
        started, loop = asyncio.Event(), asyncio.get_running_loop()
        gone = asyncio.Event()

        def slow():
            # Hold the engine in its fifth step until the connection is closed.
            if scheduler.decoder.table.longest == 8:
                loop.call_soon_threadsafe(started.set)
                asyncio.run_coroutine_threadsafe(gone.wait(), loop).result(30)
            return step()

        scheduler.decoder.step = slow
        async with aiohttp.ClientSession() as session:
            task = asyncio.create_task(session.post(f"{served.url}/generate", json=body))
            await asyncio.wait_for(started.wait(), 30)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        gone.set()
        scheduler.decoder.step = step
        while scheduler.running or scheduler.waiting:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert scheduler.steps < 90
    assert served.generate([GenerateRequest("next", [5], SamplingParams(max_new_tokens=2, ignore_eos=True))])


def test_a_port_in_use_is_named(serve, checkpoint):
    served = serve()
    port = int(served.url.rsplit(":", 1)[1])
    engine = TransformersEngine(Config.of(TransformersOptions(kv_cache_tokens=256), ClusterOptions(device="cpu")))
    with pytest.raises(MilesError, match=rf"M440 .*port {port}: the port is in use"):
        engine.start(EngineLaunch(rank=1, model=checkpoint(), port=port))


def test_a_stopped_engine_is_not_healthy(serve):
    served = serve()
    served.engine.health(10.0)
    served.engine.stop()
    served.engine.stop()
    with pytest.raises(MilesError, match="M456"):
        served.engine.health(2.0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("config.json", r"M452 .*is no HF checkpoint: config.json is missing"),
        ("model.safetensors", r"M452 .*cannot load .*OSError"),
    ],
)
def test_a_directory_that_is_no_checkpoint(checkpoint, tmp_path, broken, message):
    path = shutil.copytree(checkpoint(), tmp_path / "copy")
    (path / broken).unlink()
    engine = TransformersEngine(Config.of(TransformersOptions(), ClusterOptions(device="cpu")))
    with pytest.raises(MilesError, match=message):
        engine.start(EngineLaunch(rank=0, model=path))


def test_a_checkpoint_that_lacks_a_weight(checkpoint, tmp_path):
    path = shutil.copytree(checkpoint(), tmp_path / "copy")
    weights = load_file(path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    engine = TransformersEngine(Config.of(TransformersOptions(), ClusterOptions(device="cpu")))
    with pytest.raises(MilesError, match=r"M452 .*the weights do not fit the config: missing model.norm.weight"):
        engine.start(EngineLaunch(rank=0, model=path))


def test_a_cache_without_room(checkpoint):
    engine = TransformersEngine(Config.of(TransformersOptions(kv_cache_tokens=10), ClusterOptions(device="cpu")))
    with pytest.raises(MilesError, match="M453"):
        engine.start(EngineLaunch(rank=0, model=checkpoint()))


@pytest.fixture
def forgetful():
    """Forgets which accelerator was found, before and after."""
    accelerator.cache_clear()
    yield accelerator.cache_clear
    accelerator.cache_clear()


def test_devices(monkeypatch, forgetful):
    assert device_of("cpu", ()).type == "cpu"
    forgetful()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert device_of("auto", (6,)).index == 1
    assert device_of("auto", ()).type == "cpu"
    with pytest.raises(MilesError, match="M451"):
        device_of("cuda", (4, 6))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert device_of("cuda", (3,)).index == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    forgetful()
    with pytest.raises(MilesError, match="M451"):
        device_of("cuda", ())


def test_the_record_creates_the_engine_and_options_are_checked():
    (record,) = miles_engine()
    assert (record.name, record.create, record.options) == (
        "transformers",
        f"{TransformersEngine.__module__}:{TransformersEngine.__qualname__}",
        TransformersOptions,
    )
    assert "batch_stream" in record.capabilities
    errors = []
    miles_configure(Configure(Config.of(TransformersOptions()), errors.append))
    assert errors == []
    bad = TransformersOptions(max_batch=0, kv_cache_share=1.5, threads=-1)
    miles_configure(Configure(Config.of(bad, ClusterOptions(rollout_num_gpus_per_engine=2)), errors.append))
    assert [e.code for e in errors] == ["M450"] * 4


def test_the_plugin_module_is_light():
    code = (
        "import sys, miles_transformers.plugin, miles_core.serving;"
        "print(sorted({'torch', 'transformers', 'aiohttp', 'numpy', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
