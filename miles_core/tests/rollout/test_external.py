"""Rollouts from the buffer, over HTTP with the real server: what is taken, refused, skipped, lost and handed out again."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from aiohttp import web

from miles_core.config import ExternalOptions
from miles_core.errors import RunError, UsageError
from miles_core.rollout.external.client import BufferClient
from miles_core.rollout.external.server import buffer_app, main
from miles_core.rollout.external.source import ExternalSource
from miles_core.rollout.external.store import Store
from miles_core.rollout.external.trajectory import read_trajectory
from miles_core.runtime.experts import Experts
from miles_core.samples import Status
from miles_core.serving import ServerThread

RUN = "r1"


def item(group: object, n: int, **changes: Any) -> dict[str, Any]:
    made = {
        "run_id": RUN,
        "instance_id": group,
        "uid": f"{group}-{n}",
        "prompt_ids": [5, 6],
        "response_ids": [7, 8, 9],
        "log_probs": [-0.5, 0.0, -1.0],
        "loss_mask": [1, 0, 1],
        "reward": n / 2,
        "weight_version": 4,
        "extra_info": {"finish_reason": "length"},
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


class Buffer:
    """A served application, and calls of it."""

    def __init__(self, app: web.Application, token: str | None = None) -> None:
        self.thread = ServerThread(app)
        self.url = self.thread.start()
        self.token = token

    def call(self, path: str, body: Any = None, raw: bytes | None = None) -> tuple[int, dict[str, Any]]:
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            with urlopen(Request(self.url + path, data, headers), timeout=10) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)

    def post(self, *groups: object, size: int = 2) -> None:
        for group in groups:
            for n in range(size):
                assert self.call("/buffer/write", item(group, n))[0] == 200


Serve = Callable[..., Buffer]


@pytest.fixture
def serve_buffer() -> Iterator[Serve]:
    buffers: list[Buffer] = []

    def start(store: Store | None = None, token: str | None = None, app: web.Application | None = None) -> Buffer:
        store = Store(1 << 20, 60.0) if store is None else store
        buffers.append(Buffer(app if app is not None else buffer_app(store, token), token))
        return buffers[-1]

    yield start
    for buffer in buffers:
        buffer.thread.stop()


def source(url: str, retries: int = 0, token: str | None = None, timeout: float = 10.0, **changes: Any) -> ExternalSource:
    client = BufferClient(ExternalOptions(url, retries, 1.0, token), timeout=timeout, pause=0.01)
    chosen = {"n_samples": 2, "vocabulary": 50, "wait": 0.01, "run_id": RUN, "failure_limit": 0.5} | changes
    return ExternalSource(client, {"num_repeat_per_sample": chosen["n_samples"]}, [], str, **chosen)


def work(made: ExternalSource, *counts: int, between: Callable[[int], None] = lambda number: None) -> list[Any]:
    """Collect rollouts of these many groups."""

    async def whole() -> list[Any]:
        try:
            found = []
            for number, count in enumerate(counts):
                found.append(await made.collect(count, lambda done, total: None))
                between(number)
            return found
        finally:
            await made.client.close()

    return asyncio.run(whole())


def begin(buffer: Buffer, size: int = 2, run: str = RUN) -> None:
    assert buffer.call("/start_rollout", {"run_id": run, "num_repeat_per_sample": size})[0] == 200


def ids(collected: Any) -> list[str]:
    return [group[0].metadata["instance_id"] for group in collected.groups]


def test_groups_become_samples(serve_buffer: Serve) -> None:
    buffer = serve_buffer()
    begin(buffer)
    buffer.post(0, "b", 2)
    first, second = work(source(buffer.url), 2, 1)
    assert (ids(first), ids(second)) == (["0", "b"], ["2"])
    samples = [sample for each in (first, second) for group in each.groups for sample in group]
    assert [(sample.index, sample.group_index) for sample in samples] == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
    last = samples[-1]
    last.check()
    assert (last.prompt_ids, last.response_ids, last.loss_mask) == ([5, 6], [7, 8, 9], [1, 0, 1])
    assert (last.rollout_log_probs, last.reward, last.status) == ([-0.5, 0.0, -1.0], 0.5, Status.TRUNCATED)
    assert last.weight_versions == [(4, 3)]
    assert first.metrics["rollout_buffer/trajectories"] == 4
    assert buffer.call("/rollout")[1]["collecting"] is False


def test_a_share_of_the_groups_is_enough(serve_buffer: Serve) -> None:
    buffer = serve_buffer()
    begin(buffer)
    buffer.post(0, 1, 2)
    (found,) = work(source(buffer.url, ratio=0.6), 5)
    assert len(found.groups) == 3
    assert found.metrics["rollout_buffer/collection_ratio"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"log_probs": [-1.0]}, "1 entries for 3"),
        ({"log_probs": None}, "log_probs is missing"),
        ({"log_probs": [0.5, 0.0, 0.0]}, "no log-prob"),
        ({"loss_mask": [1, 2, 0]}, "other than 0 and 1"),
        ({"loss_mask": [1]}, "loss_mask has 1 entries"),
        ({"reward": "1"}, "no finite number"),
        ({"reward": True}, "no finite number"),
        ({"reward": float("nan")}, "no finite number"),
        ({"reward": 10**400}, "no finite number"),
        ({"response_ids": []}, "response_ids is missing, empty"),
        ({"prompt_ids": [1.5]}, "no token"),
        ({"prompt_ids": [-1]}, "no token"),
        ({"response_ids": [1, None, 3]}, "no token"),
        ({"uid": ""}, "uid is no id"),
        ({"instance_id": [1]}, "instance_id is no id"),
        ({"weight_version": -1}, "weight_version"),
        ({"extra_info": {"finish_reason": "abort"}}, "finish_reason"),
        ({"extra_info": {"finish_reason": []}}, "finish_reason"),
        ({"extra_info": {"x": float("inf")}}, "JSON"),
        ({"messages": "hello"}, "messages"),
    ],
)
def test_what_is_wrong_is_refused_with_its_reason(serve_buffer: Serve, changes: dict[str, Any], reason: str) -> None:
    buffer = serve_buffer()
    begin(buffer)
    made = {**item(0, 0), **changes}
    status, answer = buffer.call("/buffer/write", {name: value for name, value in made.items() if value is not None})
    assert status == 400
    assert reason in answer["message"]
    assert buffer.call("/stats")[1]["bytes"] == 0


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_bodies_that_are_no_objects(serve_buffer: Serve, raw: bytes) -> None:
    assert serve_buffer().call("/buffer/write", raw=raw)[0] == 400


def test_the_run_knows_its_vocabulary_and_length() -> None:
    with pytest.raises(ValueError, match="no token of a vocabulary of 9"):
        read_trajectory(item(0, 0), 9)
    with pytest.raises(ValueError, match="5 tokens, more than the run's 4"):
        read_trajectory(item(0, 0), 50, 4)


def test_routes_come_with_a_trajectory() -> None:
    experts = Experts(layers=2, experts=4, top_k=1)
    numbers = np.arange(8, dtype="<i4") % 4
    given = {"routed_experts": base64.b64encode(numbers.tobytes()).decode()}
    sample = read_trajectory(item(0, 0, **given), experts=experts).sample(0, 0, "")
    assert sample.routed_experts is not None
    assert sample.routed_experts.shape == (4, 2, 1)
    assert sample.routed_experts.reshape(-1).tolist() == numbers.tolist()
    # A run that trains with its own does not look at them.
    assert read_trajectory(item(0, 0, routed_experts="?")).sample(0, 0, "").routed_experts is None
    wrong = {"missing": None, "base64": "?", "7 numbers": base64.b64encode(numbers[:7].tobytes()).decode()}
    wrong["up to 9"] = base64.b64encode((numbers + 6).tobytes()).decode()
    for reason, value in wrong.items():
        with pytest.raises(ValueError, match="routed_experts") as raised:
            read_trajectory(item(0, 0, routed_experts=value), experts=experts)
        assert reason in str(raised.value)


def test_a_bad_trajectory_is_counted_and_its_group_skipped(serve_buffer: Serve) -> None:
    buffer = serve_buffer()
    begin(buffer)
    assert buffer.call("/buffer/write", item("odd", 0, response_ids=[7, 8, 60]))[0] == 200
    buffer.call("/buffer/write", item("odd", 1))
    buffer.post(1, 2)
    (found,) = work(source(buffer.url), 2)
    assert ids(found) == ["1", "2"]
    assert found.metrics["rollout_buffer/invalid"] == 1
    assert found.metrics["rollout_buffer/incomplete_groups"] == 1


def test_agents_that_post_nothing_of_use_end_the_run(serve_buffer: Serve) -> None:
    buffer = serve_buffer()
    begin(buffer)
    for n in range(2):
        buffer.call("/buffer/write", item(0, n, response_ids=[7, 8, 60]))
    with pytest.raises(RunError, match=r"M499 .*2 of 2 trajectories.*'0-0'.*vocabulary of 50"):
        work(source(buffer.url), 1)


def test_nothing_is_taken_twice_or_mixed_up(serve_buffer: Serve) -> None:
    buffer = serve_buffer()
    assert buffer.call("/buffer/write", item(0, 0))[0] == 409
    begin(buffer)
    assert buffer.call("/buffer/write", item(0, 0, run_id="old"))[0] == 409
    assert [buffer.call("/buffer/write", item(0, n))[1]["duplicate"] for n in (0, 0, 1, 2)] == [False, True, False, True]
    (found,) = work(source(buffer.url), 1)
    assert [sample.metadata["uid"] for sample in found.groups[0]] == ["0-0", "0-1"]
    begin(buffer, run="r2")
    assert buffer.call("/stats")[1]["out_groups"] == 0
    with pytest.raises(RunError, match=r"M498 .*another run: the run is r2"):
        asyncio.run(source(buffer.url).client.fetch(RUN, 1, [], []))


@pytest.mark.parametrize("saved_after", [0, 1])
def test_a_killed_run_trains_on_every_group_once(serve_buffer: Serve, saved_after: int) -> None:
    """States after some rollouts; the process dies after the third with one more fetch on its way."""
    buffer = serve_buffer()
    begin(buffer)
    buffer.post(*range(12))
    states: list[dict[str, Any]] = []
    first = source(buffer.url, durable=True)
    done = work(
        first, 2, 2, 2, between=lambda n: states.append(json.loads(json.dumps(first.state()))) if n <= saved_after else None
    )
    status, _ = buffer.call(
        "/get_rollout_data", {"run_id": RUN, "max_groups": 2, "held": [str(i) for i in range(6)], "acknowledged": []}
    )
    assert status == 200
    resumed = source(buffer.url, durable=True, run_id="of the state")
    resumed.load_state(states[-1])
    again = work(resumed, *[2] * (5 - saved_after))
    kept = done[: saved_after + 1]
    trained = [key for each in [*kept, *again] for key in ids(each)]
    assert sorted(trained, key=int) == [str(i) for i in range(12)]
    assert [ids(each) for each in again[: len(done) - len(kept)]] == [ids(each) for each in done[len(kept) :]]
    numbers = [sample.index for each in [*kept, *again] for group in each.groups for sample in group]
    assert numbers == list(range(24))


def test_groups_are_kept_until_a_state_with_them_is_saved(serve_buffer: Serve) -> None:
    buffer = serve_buffer()
    begin(buffer)
    buffer.post(*range(6))
    out: list[int] = []
    made = source(buffer.url, durable=True)

    def after(number: int) -> None:
        made.state()
        out.append(buffer.call("/stats")[1]["out_groups"])

    work(made, 1, 1, 1, between=after)
    # The state after the first rollout is known to be on disk when the second is asked for: its group goes with the third.
    assert out == [1, 2, 2]


def test_an_answer_that_was_lost_is_given_again(serve_buffer: Serve) -> None:
    buffer = serve_buffer()
    begin(buffer)
    buffer.post(0, 1)
    body = {"run_id": RUN, "max_groups": 1, "held": [], "acknowledged": []}
    assert buffer.call("/get_rollout_data", body)[1]["data"]["meta_info"]["finished_groups"] == ["0"]
    (found,) = work(source(buffer.url), 2)
    assert ids(found) == ["0", "1"]
    assert found.metrics["rollout_buffer/server/redelivered"] == 1


def test_memory_is_bounded() -> None:
    now = [0.0]
    store = Store(1000, 10.0, clock=lambda: now[0])
    store.begin({"run_id": RUN, "num_repeat_per_sample": 1})
    for group in range(3):
        assert store.write(item(group, 0), 400) if group < 2 else True
    assert len(store.take(1, set())) == 1
    assert store.write(item(2, 0), 400)
    assert store.facts()["evicted"] == 1
    with pytest.raises(Exception, match="800 bytes of 1000"):
        store.write(item(3, 0), 400)
    store.begin({"run_id": "r2", "num_repeat_per_sample": 2})
    store.write({**item(0, 0), "run_id": "r2"}, 400)
    now[0] = 11.0
    assert store.facts() | {"expired": 1, "bytes": 0, "growing_groups": 0} == store.facts()


def test_a_token_is_asked_for(serve_buffer: Serve) -> None:
    buffer = serve_buffer(token="secret")
    begin(buffer)
    buffer.post(0)
    assert len(work(source(buffer.url, token="secret"), 1)[0].groups) == 1
    with pytest.raises(UsageError, match=r"M496 .*HTTP 401"):
        asyncio.run(source(buffer.url).client.check())
    with pytest.raises(RunError, match=r"M498 .*bearer token"):
        work(source(buffer.url, token="wrong"), 1)


def test_no_buffer_at_the_start(serve_buffer: Serve) -> None:
    gone = serve_buffer()
    gone.thread.stop()
    with pytest.raises(UsageError, match=r"M496 .*Cannot connect.*start it with") as caught:
        asyncio.run(source(gone.url).client.check())
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.line()


class Scripted:
    """A server of another kind: one answer after the other, the last one for ever."""

    def __init__(self, *answers: tuple[int, bytes] | None) -> None:
        self.answers = list(answers)
        self.calls = 0
        self.paths: list[str] = []
        self.app = web.Application()
        self.app.router.add_route("*", "/{path:.*}", self._answer)

    async def _answer(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        if answer is None:
            await asyncio.Event().wait()
        assert answer is not None
        return web.Response(status=answer[0], body=answer[1])


GOOD = (200, json.dumps({"success": True, "data": {"data": [item(0, 0), item(0, 1)]}}).encode())


@pytest.mark.parametrize(
    ("answers", "retries", "code", "words", "calls"),
    [
        ([(200, b"{")], -1, "M498", "not JSON", 1),
        ([(200, b"[1]")], -1, "M498", "list, not a JSON object", 1),
        ([(200, b"{}")], -1, "M498", "no data.data", 2),
        ([(200, b'{"data": {"data": 3}}')], -1, "M498", "no data.data", 2),
        ([(404, b"no")], -1, "M498", "HTTP 404: no", 1),
        ([(502, b"bad")], 2, "M497", "failed 3 times in a row: HTTP 502: bad", 3),
        ([None], 1, "M497", "silent for 0.2 s", 2),
    ],
)
def test_other_servers(
    serve_buffer: Serve, answers: list[tuple[int, bytes] | None], retries: int, code: str, words: str, calls: int
) -> None:
    script = Scripted(*answers)
    buffer = serve_buffer(app=script.app)
    with pytest.raises(RunError) as caught:
        work(source(buffer.url, retries, timeout=0.2 if None in answers else 30.0), 1)
    assert caught.value.code == code
    assert words in caught.value.line()
    assert script.calls == calls, script.paths


def test_failures_in_between_are_waited_out(serve_buffer: Serve) -> None:
    script = Scripted((503, b""), GOOD, (500, b""), (429, b""), GOOD)
    (found,) = work(source(serve_buffer(app=script.app).url, 2), 1)
    assert ids(found) == ["0"]
    assert found.metrics["rollout_buffer/failed_calls"] == 3


def test_items_that_are_no_trajectories(serve_buffer: Serve) -> None:
    odd = (200, json.dumps({"success": True, "data": {"data": [3, None, {"instance_id": {}}]}}).encode())
    script = Scripted(GOOD, odd)
    with pytest.raises(RunError, match=r"M499 .*3 of 3 .*a trajectory is|M499 .*3 of 3 .*instance_id is no id"):
        work(source(serve_buffer(app=script.app).url), 1)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MILES_ROLLOUT_BUFFER_TOKEN", raising=False)
    assert main(["--host", "0.0.0.0"]) == 2
    assert capsys.readouterr().err.startswith("M349 rollout buffer: --host 0.0.0.0")
    assert main(["--group-timeout", "nan"]) == 2
    assert main(["--port", "x"]) == 2
    command = [sys.executable, "-m", "miles_core.rollout.external.server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            with urlopen(f"{url}/health", timeout=10) as answer:
                assert json.load(answer)["success"] is True
        finally:
            process.terminate()
        assert process.wait(10) == 0
