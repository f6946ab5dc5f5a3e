"""Real SGLang servers on one GPU: tokens and log-probs, weights under load, memory, pauses and seeds.

Three servers start at once, one with deterministic inference and one in FP8; that takes most of the time of these tests.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from miles_core.errors import MilesError
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.samples import FinishReason, GenerateRequest, SamplingParams
from miles_core.serving import EngineClient
from miles_core.weights import WeightPublisher, open_transport
from miles_sglang.arguments import installed_source
from miles_sglang.engine import SGLangEngine
from miles_sglang.fp8 import Prepared
from miles_sglang.options import ServerOptions, SGLangOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or installed_source()[0] is None, reason="needs a GPU and SGLang"),
]
SERVER = {
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_prefill_cuda_graph": True,
    "cuda_graph_max_bs_decode": 32,
    # The servers look at the free memory while they start; what each takes is this many tokens.
    "mem_fraction_static": 0.6,
    "max_total_tokens": "150000",
}
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def show(line):
    """For ``pytest -rP``."""
    sys.stdout.write(line + "\n")


class Handle:
    """Calls an engine in this process, one call after the other."""

    def __init__(self, engine):
        self.name, self._engine, self._thread = "engine", engine, ThreadPoolExecutor(1)

    def call(self, method, *args):
        return self._thread.submit(getattr(self._engine, method), *args)

    def wait(self, futures, timeout):
        return [future.result(timeout) for future in futures]


class Policy:
    """The model that the servers serve, in this process: what trains."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM

        self.folder = folder
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()
        self.weights = {0: {name: tensor.clone() for name, tensor in self._export()}}

    def _export(self):
        return [(n, t) for n, t in self.model.state_dict().items() if n != "lm_head.weight"]

    def change(self, version):
        """Other weights, far from those of any other version."""
        generator = torch.Generator("cuda").manual_seed(version)
        changed = {}
        for name, tensor in self.weights[0].items():
            noise = torch.randn(tensor.shape, generator=generator, device="cuda", dtype=torch.float32)
            changed[name] = (tensor.float() + 0.02 * noise).bfloat16() if tensor.dim() > 1 else tensor
        self.weights[version] = changed
        return changed

    @torch.no_grad()
    def log_probs(self, request, result, version):
        """Of a response's tokens under one version."""
        self.model.load_state_dict(self.weights[version], strict=False)
        self.model.tie_weights()
        ids = torch.tensor([[*request.input_ids, *result.output_ids]], device="cuda")
        logits = self.model(input_ids=ids).logits[0, len(request.input_ids) - 1 : -1].float()
        tokens = torch.tensor(result.output_ids, device="cuda")
        return torch.log_softmax(logits / request.params.temperature, -1).gather(1, tokens[:, None])[:, 0].cpu()

    def check(self, request, result, version):
        """The response's log-probs are this version's, up to the rounding of bfloat16; those of others are far away."""
        got = torch.tensor(result.log_probs)
        own = (got - self.log_probs(request, result, version)).abs()
        assert own.mean() < 0.05, f"{request.rid} of version {version}: mean difference {own.mean():.3f}"
        assert own.max() < 0.5, f"{request.rid} of version {version}: largest difference {own.max():.3f}"


def prompt(rid, tokens=64, seed=0, **params):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 250, (24,), generator=generator).tolist()
    settings = SamplingParams(**{"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0.8, **params})
    return GenerateRequest(rid, ids, settings)


async def answers(url, *requests):
    client = EngineClient([url], batch_stream=False, timeout=120.0)
    try:
        return {result.rid: result async for result in client.generate(requests)}
    finally:
        await client.close()


def ask(url, *requests):
    return asyncio.run(answers(url, *requests))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("checkpoint", BENCHMARKS / "checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    size = os.environ.get("MILES_TEST_SGLANG_SIZE", "0.6b")
    return Policy(module.write(tmp_path_factory.mktemp("model"), size, dtype=torch.bfloat16))


@pytest.fixture(scope="module")
def servers(policy, tmp_path_factory):
    """A plain one, a deterministic one and one in FP8, which start at once: engines, and what becomes their URLs."""
    logs = tmp_path_factory.mktemp("logs")
    kinds = ({}, {"enable_deterministic_inference": True}, {"quantization": "fp8"})
    engines = [SGLangEngine(Config.of(SGLangOptions(launch_timeout=250.0), ServerOptions(**SERVER, **kind))) for kind in kinds]

    def start(rank):
        launch = EngineLaunch(rank=rank, model=policy.folder, memory_saver=rank == 0, log_dir=logs, seed=42 + rank)
        return engines[rank].start(launch)

    with ThreadPoolExecutor(len(kinds)) as pool:
        yield [(engine, pool.submit(start, rank)) for rank, engine in enumerate(engines)]
        for engine in engines:
            engine.stop()


def running(started):
    """An engine and its URL, once it serves; the end of its log where it does not."""
    engine, url = started
    try:
        return engine, url.result()
    except MilesError as error:
        raise AssertionError(f"{error.line()}\n{error.data.get('traceback', '')}") from error


@pytest.fixture(scope="module")
def plain(servers):
    return running(servers[0])


def publish(engine, policy, version, tmp_path, transport="cuda_ipc", **settings):
    sender = open_transport(transport, tmp_path, "trainer-0")
    publisher = WeightPublisher(sender, bucket_bytes=1 << 29, **settings)
    try:
        return publisher.publish(version, policy.weights[version].items(), [Handle(engine)])
    finally:
        publisher.close()


def test_tokens_and_log_probs(plain, policy):
    engine, url = plain
    engine.health(30.0)
    requests = [prompt(f"r{i}", seed=i) for i in range(16)]
    results = ask(url, *requests)
    for request in requests:
        result = results[request.rid]
        assert len(result.output_ids) == 64
        assert result.finish_reason is FinishReason.LENGTH
        assert result.weight_version == 0
        policy.check(request, result, 0)
    # Greedy responses have log-probs at temperature 1.
    greedy = prompt("greedy", temperature=0.0)
    result = ask(url, greedy)["greedy"]
    policy.check(GenerateRequest("greedy", greedy.input_ids, SamplingParams(max_new_tokens=64, temperature=1.0)), result, 0)


def test_weights_over_cuda_ipc_with_equal_digests(plain, policy, tmp_path):
    engine, url = plain
    policy.change(1)
    report = publish(engine, policy, 1, tmp_path, check_equal=True)
    again = publish(engine, policy, 1, tmp_path)
    show(f"published {again.bytes / 1e9:.2f} GB in {again.seconds * 1000:.0f} ms: {again.phases}; digests {report.seconds:.1f} s")
    request = prompt("a")
    result = ask(url, request)["a"]
    assert result.weight_version == 1
    policy.check(request, result, 1)


def test_weights_change_under_load(plain, policy, tmp_path):
    engine, url = plain
    for version in (2, 3, 4):
        policy.change(version)
    made, stop = [], threading.Event()

    def load(number):
        turn = 0
        while not stop.is_set():
            request = prompt(f"load-{number}-{turn}", tokens=48 + 32 * (number % 4), seed=1000 * number + turn)
            made.append((request, ask(url, request)[request.rid]))
            turn += 1

    threads = [threading.Thread(target=load, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for version in (2, 3, 4):
        while sum(result.finish_reason is not FinishReason.ABORT for _, result in made) < 24 * (version - 1):
            assert any(thread.is_alive() for thread in threads)
            stop.wait(0.05)
        publish(engine, policy, version, tmp_path)
    stop.set()
    for thread in threads:
        thread.join()
    whole = [(request, result) for request, result in made if result.output_ids]
    assert {result.weight_version for _, result in whole} >= {2, 3}
    aborted = sum(result.finish_reason is FinishReason.ABORT for _, result in made)
    for request, result in sorted(whole, key=lambda each: each[1].weight_version):
        policy.check(request, result, result.weight_version)
    show(f"{len(made)} responses, {aborted} of them ended by a publish, every one of its own version")


def test_memory_goes_and_comes_back(plain, policy, tmp_path):
    engine, url = plain
    before = torch.cuda.mem_get_info()[0]
    engine.release_memory()
    freed = torch.cuda.mem_get_info()[0] - before
    assert freed > 8 << 30
    engine.resume_memory(["weights"])
    publish_closed(engine, policy, 4, tmp_path)
    engine.resume_memory(["kv_cache"])
    engine.resume()
    request = prompt("back", seed=5)
    result = ask(url, request)["back"]
    assert result.weight_version == 4
    policy.check(request, result, 4)
    show(f"released {freed / 2**30:.1f} GiB")


def publish_closed(engine, policy, version, tmp_path):
    publisher = WeightPublisher(open_transport("cuda_ipc", tmp_path, "trainer-0"), bucket_bytes=1 << 29)
    publisher.publish(version, policy.weights[version].items(), [Handle(engine)], resume=False)
    publisher.close()


@pytest.mark.parametrize("mode", ["retract", "in_place", "abort"])
def test_pauses(plain, mode):
    engine, url = plain
    request = prompt("long", tokens=1500 if mode != "abort" else 20000)

    async def main():
        task = asyncio.create_task(answers(url, request))
        await asyncio.sleep(0.7)
        await asyncio.to_thread(engine.pause, mode)
        done, _ = await asyncio.wait([task], timeout=1.0)
        assert bool(done) is (mode == "abort")
        await asyncio.to_thread(engine.resume)
        return (await task)["long"]

    result = asyncio.run(main())
    if mode == "abort":
        assert result.finish_reason is FinishReason.ABORT
        assert 0 < len(result.output_ids) == len(result.log_probs) < 20000
    else:
        assert len(result.output_ids) == 1500


def test_abort(plain):
    engine, url = plain

    async def main():
        task = asyncio.create_task(answers(url, prompt("long", tokens=20000)))
        await asyncio.sleep(0.7)
        await asyncio.to_thread(engine.abort)
        return (await task)["long"]

    assert asyncio.run(main()).finish_reason is FinishReason.ABORT
    assert ask(url, prompt("next"))["next"].finish_reason is FinishReason.LENGTH


def test_weights_over_disk(plain, policy, tmp_path):
    engine, url = plain
    publish(engine, policy, 2, tmp_path, transport="disk")
    request = prompt("disk")
    result = ask(url, request)["disk"]
    assert result.weight_version == 2
    policy.check(request, result, 2)


def test_seeds_fix_responses_whatever_the_batch(servers):
    _, url = running(servers[1])
    alone = ask(url, prompt("alone", sampling_seed=7))["alone"]
    crowd = ask(url, prompt("with", sampling_seed=7), *[prompt(f"o{i}", seed=i + 1, sampling_seed=i) for i in range(20)])["with"]
    other = ask(url, prompt("other", sampling_seed=8))["other"]
    assert alone.output_ids == crowd.output_ids != other.output_ids
    assert alone.log_probs == crowd.log_probs


def test_fp8_servers_take_what_the_trainer_quantises(servers, policy, tmp_path):
    engine, url = running(servers[2])
    policy.change(1)
    prepared = Prepared(Config.of(ServerOptions(quantization="fp8")))
    publisher = WeightPublisher(open_transport("cuda_ipc", tmp_path, "trainer-0"), bucket_bytes=1 << 29, check_equal=True)
    publisher.publish(1, prepared(policy.weights[1].items()), [Handle(engine)])
    publisher.close()
    request = prompt("fp8", tokens=200)
    result = ask(url, request)["fp8"]
    assert result.weight_version == 1
    difference = (torch.tensor(result.log_probs) - policy.log_probs(request, result, 1)).abs().mean()
    show(f"mean difference of log-probs in FP8: {difference:.3f}")
    assert difference < 0.25


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_weights_over_nccl_to_another_gpu(policy, tmp_path):
    engine = SGLangEngine(Config.of(SGLangOptions(launch_timeout=400.0), ServerOptions(**SERVER)))
    try:
        url = engine.start(EngineLaunch(rank=0, model=policy.folder, devices=(1,), log_dir=tmp_path))
        policy.change(1)
        publish(engine, policy, 1, tmp_path, transport="process_group", check_equal=True)
        request = prompt("a")
        result = ask(url, request)["a"]
        assert result.weight_version == 1
        policy.check(request, result, 1)
    finally:
        engine.stop()
