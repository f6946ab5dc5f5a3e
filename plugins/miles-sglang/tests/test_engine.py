"""An engine's life: launch, generation, pauses, memory, and how a server that fails is told of."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading

import numpy as np
import psutil
import pytest

from miles_core.config import ClusterOptions, RoutingOptions
from miles_core.errors import MilesError
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.samples import FinishReason
from miles_sglang.arguments import installed_source
from miles_sglang.engine import SGLangEngine
from miles_sglang.options import SGLangOptions


def test_a_server_is_launched_with_what_the_run_says(serve, checkpoint):
    served = serve(
        server={"mem_fraction_static": 0.4, "context_length": "8k", "attention_backend": "triton", "lora_paths": ["a", "b"]},
        seed=7,
        devices=(3,),
    )
    info = served.engine.info()
    told = {key: info[key] for key in ("model_path", "host", "random_seed", "mem_fraction_static", "context_length")}
    assert told == {
        "model_path": str(checkpoint),
        "host": "127.0.0.1",
        "random_seed": "7",
        "mem_fraction_static": "0.4",
        "context_length": "8k",
    }
    # The checkpoint is in float32, of which SGLang itself would make float16.
    assert info["dtype"] == "bfloat16"
    assert info["skip_server_warmup"] is info["enable_memory_saver"] is True
    assert info["lora_paths"] == ["a", "b"]
    assert psutil.Process(info["pid"]).environ()["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_a_server_on_ipv6(serve, request_of):
    served = serve(host="::1")
    assert served.url.startswith("http://[::1]:")
    assert served.ask(request_of("a"))["a"].finish_reason is FinishReason.LENGTH


def test_tokens_log_probs_and_versions(served, request_of):
    result = served.ask(request_of("a"), request_of("b", 2))["a"]
    assert result.output_ids == (1, 2, 3, 4)
    assert result.log_probs == (-0.5,) * 4
    assert result.prompt_tokens == 3


def test_weights_that_nobody_has_published_are_version_0(serve, request_of):
    assert serve().ask(request_of("a"))["a"].weight_version == 0


def test_routes_of_tokens(served, request_of):
    assert served.engine.info()["enable_return_routed_experts"] is True
    routes = served.ask(request_of("a", return_routed_experts=True))["a"].routed_experts
    assert np.frombuffer(routes, "<i4").tolist() == [1] * (3 + 4 - 1) * 2


def test_a_server_that_fails_at_the_start_is_told_of_with_its_log(serve, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "no memory for the KV cache")
    with pytest.raises(MilesError, match=r"M511.*exit code 1.*RuntimeError: no memory for the KV cache") as caught:
        serve()
    assert "server_args=" in caught.value.data["traceback"]
    assert caught.value.data["log"].endswith("sglang-0.log")


def test_an_argument_that_the_server_does_not_have_is_in_the_error(serve):
    with pytest.raises(MilesError, match=r"M511.*unrecognized arguments: --nonsense"):
        serve(own={"launcher": f"{sys.executable} {__file__.replace('test_engine', 'fake_server')} --nonsense"})


def test_a_server_that_takes_too_long(serve, monkeypatch):
    monkeypatch.setenv("FAKE_START_SECONDS", "1000")
    with pytest.raises(MilesError, match=r"M512.*not ready within 1 s"):
        serve(own={"launch_timeout": 1.0})


def test_nothing_is_left_of_a_server_that_was_stopped(serve):
    served = serve()
    pid = served.engine.info()["pid"]
    family = [psutil.Process(pid), psutil.Process(pid).parent()]
    served.engine.stop()
    assert not any(process.is_running() for process in family)
    served.engine.stop()


def test_an_engine_that_was_stopped_starts_anew(serve, request_of, checkpoint):
    served = serve()
    served.engine.pause()
    served.engine.begin_weights(1)
    served.engine.stop()
    url = served.engine.start(EngineLaunch(rank=0, model=checkpoint))
    assert served.engine.serving
    assert type(served)(served.engine, url).ask(request_of("a"))["a"].finish_reason is FinishReason.LENGTH


def test_a_server_ends_with_the_process_that_started_it(serve):
    served = serve()
    process = psutil.Process(served.engine.info()["pid"])
    # As when the engine's process is killed: the pipe to the guard closes.
    served.engine._process._process.stdin.close()
    process.wait(10)
    served.engine._process._process.wait(10)
    with pytest.raises(MilesError, match="M511"):
        served.engine.health(1.0)


def test_a_pause_ends_requests_and_holds_new_ones(served, request_of):

    async def main():
        long = asyncio.create_task(served.generate(request_of("long", 10**6)))
        while not (await asyncio.to_thread(served.engine.info))["running"]:
            await asyncio.sleep(0)
        await asyncio.to_thread(served.engine.pause)
        ended = (await long)["long"]
        waiting = asyncio.create_task(served.generate(request_of("next")))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        await asyncio.to_thread(served.engine.resume)
        return ended, (await waiting)["next"]

    ended, following = asyncio.run(main())
    assert ended.finish_reason is FinishReason.ABORT
    assert len(ended.output_ids) == len(ended.log_probs) > 0
    assert following.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_a_pause_that_keeps_requests_becomes_one_that_ends_them(served, mode):
    served.engine.pause(mode)
    served.engine.pause("abort")
    served.engine.pause("abort")
    said = [(path, body.get("mode")) for path, body, _ in served.calls()]
    assert said == [("/pause_generation", mode), ("/continue_generation", None), ("/pause_generation", "abort")]
    served.engine.resume()
    assert served.engine.serving


def test_abort_ends_requests_and_the_engine_serves_on(served, request_of):
    found = {}
    caller = threading.Thread(target=lambda: found.update(served.ask(request_of("long", 10**6))))
    caller.start()
    while caller.is_alive():
        served.engine.abort()
        caller.join(0.05)
    assert found["long"].finish_reason is FinishReason.ABORT
    assert served.ask(request_of("next"))["next"].finish_reason is FinishReason.LENGTH


def test_a_request_that_is_aborted_while_it_waits_has_no_token(served, request_of):
    async def main():
        await asyncio.to_thread(served.engine.pause)
        waiting = asyncio.create_task(served.generate(request_of("early")))
        while not (await asyncio.to_thread(served.engine.info))["waiting"]:
            await asyncio.sleep(0)
        await asyncio.to_thread(served.engine.abort)
        await asyncio.to_thread(served.engine.resume)
        return (await waiting)["early"]

    result = asyncio.run(main())
    assert (result.finish_reason, result.output_ids) == (FinishReason.ABORT, ())


def test_memory_is_released_while_nothing_runs_and_taken_back_by_tag(served, request_of):
    # Not paused: a request that came now would read memory that is gone.
    served.engine.release_memory()
    assert served.engine.info()["released"] == ["cuda_graph", "kv_cache", "weights"]
    assert served.calls("/pause_generation")[0][1] == {"mode": "abort"}
    served.engine.health(10.0)
    served.engine.release_memory()
    with pytest.raises(MilesError, match=r"M515.*kv_cache and weights is released"):
        served.engine.resume()
    with pytest.raises(MilesError, match=r"M515.*memory is released.*resume_memory"):
        served.engine.begin_weights(1)
    served.engine.resume_memory(["weights"])
    served.engine.resume_memory(["weights"])
    assert served.engine.info()["released"] == ["cuda_graph", "kv_cache"]
    served.engine.resume_memory()
    with pytest.raises(MilesError, match=r"M515.*no version was committed"):
        served.engine.resume()
    assert [body["tags"] for _, body, _ in served.calls("/resume_memory")] == [["weights"], ["cuda_graph", "kv_cache"]]


def test_memory_of_an_unknown_name_or_without_a_saver(serve, served):
    with pytest.raises(MilesError, match=r"M515.*no memory called attic"):
        served.engine.release_memory(["attic"])
    with pytest.raises(MilesError, match=r"M515.*without a memory saver"):
        serve(memory_saver=False).engine.release_memory()


def test_what_needs_a_server_before_there_is_one(served, checkpoint):
    engine = type(served.engine)(served.engine._config)
    for call in (engine.flush, engine.pause, lambda: engine.begin_weights(1)):
        with pytest.raises(MilesError, match="M515"):
            call()
    with pytest.raises(MilesError, match=r"M515.*twice"):
        served.engine.start(EngineLaunch(rank=0, model=checkpoint))


def test_health_of_a_server_that_is_stuck(serve):
    served = serve()
    served.engine.health(10.0)
    process = psutil.Process(served.engine.info()["pid"])
    process.suspend()
    try:
        with pytest.raises(MilesError, match=r"M514.*does not answer /health within 0.5 s"):
            served.engine.health(0.5)
    finally:
        process.resume()


def test_further_nodes_of_an_engine_return_at_once(serve, monkeypatch):
    monkeypatch.setenv("FAKE_START_SECONDS", "1000")
    served = serve(groups=[ClusterOptions(rollout_num_gpus_per_engine=16)], node_rank=1, num_nodes=2, meeting="127.0.0.1:9")
    assert served.url == ""
    served.engine.health(1.0)


@pytest.mark.skipif(installed_source()[0] is not None, reason="SGLang is installed")
def test_an_engine_without_sglang_says_how_to_get_it(serve):
    with pytest.raises(MilesError, match=r"M517.*miles-sglang\[server\].*--sglang-launcher"):
        serve(own={"launcher": ""})


def test_an_engine_attaches_to_a_server_that_runs_already_and_leaves_it_serving(served, request_of, checkpoint):
    def attached(**groups):
        engine = type(served.engine)(Config.of(SGLangOptions(launch_timeout=5.0), *groups.values()))
        return engine, engine.start(EngineLaunch(rank=0, model=checkpoint, url=served.url))

    engine, url = attached()
    assert url == served.url
    engine.health(5.0)
    engine.pause()
    engine.stop()
    assert served.ask(request_of("a"))["a"].finish_reason is FinishReason.LENGTH
    with pytest.raises(MilesError, match=r"M520.*it has 1 GPUs.*--rollout-num-gpus-per-engine 1"):
        attached(cluster=ClusterOptions(rollout_num_gpus_per_engine=4))
    with pytest.raises(MilesError, match=r"M514.*does not answer /server_info"):
        engine.start(EngineLaunch(rank=0, model=checkpoint, url="http://127.0.0.1:9"))


def test_an_external_server_that_tells_no_routes(serve, checkpoint):
    url = serve().url
    engine = SGLangEngine(Config.of(RoutingOptions(use_rollout_routing_replay=True)))
    with pytest.raises(MilesError, match=r"M520.*--enable-return-routed-experts"):
        engine.start(EngineLaunch(rank=0, model=checkpoint, url=url))
