"""Scoring responses on a teacher's server: one that works, fails, stalls, or answers something else."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from miles_core.config import TeacherOptions
from miles_core.errors import MilesError, RunError, UsageError
from miles_core.rollout.conversion import to_rows
from miles_core.rollout.manager import RolloutManager
from miles_core.rollout.teacher import TeacherClient, prompt_log_probs
from miles_core.samples import Invalid, Sample
from miles_core.serving import ServerThread

Script = Callable[[dict[str, Any], int], Any]


def truth(ids: list[int], temperature: float) -> list[float]:
    """What the scripted teacher thinks: a log-prob per token but the first."""
    return [-(0.5 + token % 7) / temperature for token in ids[1:]]


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """As SGLang would answer, with the temperature applied."""
    ids, temperature = body["input_ids"], body["sampling_params"]["temperature"]
    entries = [[None, ids[0], None], *([lp, token, None] for lp, token in zip(truth(ids, temperature), ids[1:], strict=True))]
    return {"text": "", "output_ids": [], "meta_info": {"input_token_logprobs": entries, "output_token_logprobs": []}}


class Server:
    """Answers ``/generate`` by a script, which gets the body and the number of the call."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.running = self.most = 0
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        self._thread = ServerThread(app)
        self.url = self._thread.start()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(request.headers)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            found = self.script(body, number)
            if asyncio.iscoroutine(found):
                found = await found
        finally:
            self.running -= 1
        if isinstance(found, web.StreamResponse):
            return found
        return web.Response(body=found if isinstance(found, bytes) else json.dumps(found).encode())

    def stop(self) -> None:
        self._thread.stop()


@pytest.fixture
def teaching() -> Iterator[Callable[[Script], Server]]:
    servers: list[Server] = []

    def start(script: Script) -> Server:
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def use(url: str, work, temperature: float = 1.0, **options: Any) -> Any:
    """Do ``work`` with a client that waits little."""

    async def whole() -> Any:
        chosen = TeacherOptions(teacher_url=url, **{"teacher_timeout": 20.0, **options})
        client = TeacherClient(chosen, temperature, pause=0.01)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(whole())


def samples(count: int = 6) -> list[Sample]:
    return [
        Sample(index=i, group_index=i // 2, prompt_ids=[1, 2 + i], response_ids=list(range(3, 4 + i)), reward=1.0)
        for i in range(count)
    ]


def test_a_teacher_s_log_probs_come_to_the_response_s_tokens(teaching):
    server = teaching(lambda body, _: answer(body))
    batch = samples()
    progress = []
    tally = use(server.url + "/generate", lambda c: c.score(batch, 0.0, lambda *n: progress.append(n)), temperature=0.5)
    assert (tally.scored, tally.failed, tally.retries) == (6, 0, 0)
    assert tally.metrics()["rollout/teacher_failures"] == 0
    assert progress[-1] == (6, 6)
    for sample in batch:
        assert sample.teacher_log_probs == truth(sample.tokens, 0.5)[-sample.response_length :]
        sample.check()
    body = next(b for b in server.bodies if b["input_ids"] == batch[3].tokens)
    assert body == {
        "input_ids": [1, 5, 3, 4, 5, 6],
        "sampling_params": {"temperature": 0.5, "max_new_tokens": 0, "skip_special_tokens": False},
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    rows = to_rows(batch, None)
    assert all(np.allclose(r.extras["teacher_log_probs"], s.teacher_log_probs) for r, s in zip(rows, batch, strict=True))
    assert all(row.extras["teacher_log_probs"].dtype == np.float32 for row in rows)


def test_samples_that_are_not_trained_on_are_not_scored(teaching):
    server = teaching(lambda body, _: answer(body))
    batch = samples(4)
    batch[0].response_ids = []
    batch[1].score, batch[1].reward = Invalid("broken"), None
    batch[2].removed = True
    tally = use(server.url, lambda c: c.score(batch, 0.0))
    assert (tally.scored, len(server.bodies)) == (1, 1)
    assert [row.extras.keys() for row in to_rows(batch, None)] == [set(), set(), set(), {"teacher_log_probs"}]
    assert not any(row.mask.any() for row in to_rows(batch, None)[:3])


def test_no_more_calls_at_a_time_than_allowed(teaching):
    async def slow(body):
        await asyncio.sleep(0.02)
        return answer(body)

    server = teaching(lambda body, _: slow(body))
    assert use(server.url, lambda c: c.score(samples(12), 0.0), teacher_concurrency=3).scored == 12
    assert server.most == 3


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_now_and_then_is_asked_again(teaching, status):
    server = teaching(lambda body, n: answer(body) if n % 2 else web.Response(status=status, text="busy"))
    tally = use(server.url, lambda c: c.score(samples(5), 0.0), teacher_concurrency=1)
    assert (tally.scored, tally.failed, tally.retries) == (5, 0, 5)


def garbage(change: Callable[[list[list[Any]]], Any]) -> Script:
    """Answers that are good but for what ``change`` does to the entries."""

    def script(body: dict[str, Any], _: int) -> Any:
        document = answer(body)
        entries = document["meta_info"]["input_token_logprobs"]
        replaced = change(entries)
        if replaced is not None:
            document["meta_info"]["input_token_logprobs"] = replaced
        return document

    return script


def put(entries: list[list[Any]], value: Any, place: int = 0) -> None:
    entries[-1][place] = value


BROKEN: list[tuple[Script, str]] = [
    (lambda body, n: b"<html>", "Expecting value"),
    (lambda body, n: b"[1]", "no meta_info.input_token_logprobs"),
    (lambda body, n: {"error": {"message": "no such model"}}, "no such model"),
    (lambda body, n: {"meta_info": {"input_token_logprobs": [1, 2]}}, "no meta_info.input_token_logprobs"),
    (garbage(lambda e: e[:-1]), r"scored \d tokens of \d that were sent"),
    (garbage(lambda e: put(e, 99, 1)), "scored other tokens than were sent"),
    (garbage(lambda e: put(e, None)), "None is no log-prob"),
    (garbage(lambda e: put(e, "x")), "'x' is no log-prob"),
    (garbage(lambda e: put(e, 0.7)), "0.7 is no log-prob"),
    (garbage(lambda e: put(e, math.nan)), "nan is no log-prob"),
    (garbage(lambda e: put(e, -math.inf)), "-inf is no log-prob"),
    (garbage(lambda e: put(e, True)), "True is no log-prob"),
    (lambda body, n: web.Response(status=400, text="bad request"), "HTTP 400: bad request"),
]


@pytest.mark.parametrize(("script", "why"), BROKEN)
def test_what_is_no_score_is_a_failure_and_never_a_zero(teaching, script, why):
    """One sample's answers are broken; it is counted and masked, the others train."""
    server = teaching(lambda body, n: script(body, n) if body["input_ids"][1] == 4 else answer(body))
    batch = samples(4)
    tally = use(server.url, lambda c: c.score(batch, 0.25))
    assert (tally.scored, tally.failed) == (3, 1)
    assert sum(body["input_ids"][1] == 4 for body in server.bodies) == 1, "asking again would bring the same"
    assert batch[2].removed
    assert batch[2].teacher_log_probs is None
    rows = to_rows(batch, None)
    assert not rows[2].mask.any()
    assert not rows[2].extras
    assert all(rows[i].mask.all() for i in (0, 1, 3))

    with pytest.raises(RunError, match=rf"M495 teacher http.* 1 of 4 samples have no teacher log-probs: sample 2: .*{why}"):
        use(server.url, lambda c: c.score(samples(4), 0.2))


def test_a_server_that_stalls_costs_its_time_limit_only(teaching):
    server = teaching(lambda body, _: asyncio.sleep(60) if body["input_ids"][1] == 4 else answer(body))
    batch = samples(4)
    started = time.perf_counter()
    tally = use(server.url, lambda c: c.score(batch, 0.5), teacher_timeout=0.2, teacher_retries=1)
    assert time.perf_counter() - started < 10
    assert (tally.scored, tally.failed, tally.retries) == (3, 1, 1)
    assert tally.details == ["sample 2: it was silent for 0.2 s"]


def test_a_teacher_that_went_away_stops_the_run_at_once(teaching):
    server = teaching(lambda body, _: web.Response(status=500, text="out of memory"))
    with pytest.raises(RunError, match=r"M495 .*HTTP 500: out of memory"):
        use(server.url, lambda c: c.score(samples(40), 0.5), teacher_concurrency=1, teacher_retries=0)
    assert 21 <= len(server.bodies) <= 23, "what is left is given up once too many failed"


def test_the_first_check_finds_what_will_not_do(teaching):
    fine = teaching(lambda body, _: answer(body))
    assert use(fine.url, lambda c: c.check([1, 2, 3]), temperature=0.7) is None
    assert len(fine.bodies) == 2
    assert use(fine.url, lambda c: c.check([1, 2, 3])) is None
    assert len(fine.bodies) == 3, "temperature 1 is every server's"

    def deaf(body: dict[str, Any], _: int) -> Any:
        return answer({**body, "sampling_params": {"temperature": 1.0}})

    stock = teaching(deaf)
    assert use(stock.url, lambda c: c.check([1, 2, 3])) is None
    with pytest.raises(UsageError, match=r"M494 .*temperature 1, not at --rollout-temperature 0.7"):
        use(stock.url, lambda c: c.check([1, 2, 3]), temperature=0.7)

    other = teaching(lambda body, _: {"choices": []})
    with pytest.raises(UsageError, match=r"M493 .*no meta_info.input_token_logprobs"):
        use(other.url, lambda c: c.check([1, 2, 3]))
    gone = teaching(lambda body, _: answer(body))
    gone.stop()
    with pytest.raises(UsageError, match=r"M492 .*does not score a first request: .*onnect"):
        use(gone.url, lambda c: c.check([1, 2, 3]), teacher_retries=1)


def test_the_key_is_sent_and_never_told(teaching):
    def guarded(body: dict[str, Any], _: int) -> Any:
        return answer(body) if server.headers[-1].get("Authorization") == "Bearer k3y" else web.Response(status=401, text="who?")

    server = teaching(guarded)
    assert use(server.url, lambda c: c.check([1, 2, 3]), teacher_api_key="k3y") is None
    with pytest.raises(MilesError, match=r"M492 .*HTTP 401: who") as refused:
        use(server.url, lambda c: c.check([1, 2, 3]), teacher_api_key="wr0ng")
    assert "wr0ng" not in refused.value.line()
    assert "MILES_TEACHER_API_KEY" in refused.value.line()


DISTIL = ["--advantage-estimator", "on_policy_distillation", "--loss-type", "policy_loss"]


def distilling(write, url: str, *more: object) -> list[object]:
    rows = [{"input": f"say {i}"} for i in range(4)]
    sizes = ["--rollout-batch-size", 2, "--n-samples-per-prompt", 2, "--rollout-max-response-len", 8]
    return [*DISTIL, "--prompt-data", write(*rows), *sizes, "--teacher-url", url, *more]


def test_a_rollout_without_a_reward_is_scored_and_not_graded(teaching, serve, plan, write):
    def mostly(body: dict[str, Any], _: int) -> Any:
        # The responses to the second prompt cannot be scored.
        return answer(body) if prompts[1] not in bytes(i % 256 for i in body["input_ids"]) else web.Response(status=400, text="no")

    server = teaching(mostly)
    _, url = serve(lambda text, seed: "ab" + "c" * (seed % 4))
    config, run_plan = plan(*distilling(write, server.url, "--reward-failure-limit", 0.5, "--rollout-temperature", 0.5))
    assert run_plan.plugins.reward is None

    async def whole() -> Any:
        manager = RolloutManager(config, run_plan)
        try:
            await manager.start([url])
            prompts[:] = [bytes(i % 256 for i in manager._source.prompts.sample(n).prompt_ids) for n in range(2)]
            return await manager.generate(0)
        finally:
            await manager.close()

    prompts = [b"", b"nothing"]
    result = asyncio.run(whole())
    assert len(result.rows) == 4
    assert [bool(row.mask.any()) for row in result.rows] == [True, True, False, False]
    for row in result.rows[:2]:
        wanted = truth(row.tokens.tolist(), 0.5)[-row.response_length :]
        assert np.allclose(row.extras["teacher_log_probs"], wanted)
        assert row.reward == 0.0
        assert math.isnan(row.raw_reward)
    assert result.metrics["rollout/teacher_failures"] == 2
    assert result.metrics["perf/teacher_time"] > 0
    assert "rollout/raw_reward" not in result.metrics


def test_a_run_does_not_start_without_its_teacher(teaching, serve, plan, write):
    gone = teaching(lambda body, _: answer(body))
    gone.stop()
    _, url = serve(lambda text, seed: "ab")
    config, run_plan = plan(*distilling(write, gone.url, "--teacher-retries", 0))

    async def whole() -> None:
        manager = RolloutManager(config, run_plan)
        try:
            await manager.start([url])
        finally:
            await manager.close()

    with pytest.raises(UsageError, match="M492"):
        asyncio.run(whole())


def test_a_first_entry_with_a_log_prob_is_not_the_first_token_s():
    document = answer({"input_ids": [4, 5], "sampling_params": {"temperature": 1.0}})
    assert prompt_log_probs(document, [4, 5]) == truth([4, 5], 1.0)
    assert prompt_log_probs({"meta_info": {"input_token_logprobs": [[None, 4, None]]}}, [4]) == []
