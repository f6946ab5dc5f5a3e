"""The manager of a run with a rollout buffer, killed and resumed: every group is trained on once."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from urllib.request import Request, urlopen

from miles_core.rollout.external.server import buffer_app
from miles_core.rollout.external.store import Store
from miles_core.rollout.manager import RolloutManager
from miles_core.serving import ServerThread


def call(url: str, body: dict[str, object] | None = None) -> dict[str, object]:
    with urlopen(Request(url, None if body is None else json.dumps(body).encode()), timeout=10) as answer:
        found: dict[str, object] = json.load(answer)
        return found


def post(url: str, groups: range) -> None:
    """What an agent does once there is a run."""
    while not (run := call(f"{url}/rollout")["run"]):
        time.sleep(0.02)
    assert isinstance(run, dict)
    for group in groups:
        for n in range(2):
            made = {"run_id": run["run_id"], "instance_id": group, "uid": n, "prompt_ids": [4], "response_ids": [5 + n, 2]}
            call(f"{url}/buffer/write", {**made, "log_probs": [-1.0, -0.25], "reward": n})


def test_a_resumed_manager_goes_on(plan, serve, tmp_path: Path) -> None:
    _, engine = serve(lambda text, seed: "unused")
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"input": "1+1"}\n', encoding="utf-8")
    server = ServerThread(buffer_app(Store(1 << 20, 60.0)))
    url = server.start()
    made = plan(
        *("--algo", "grpo", "--prompt-data", rows, "--rollout-batch-size", 2, "--n-samples-per-prompt", 2),
        *("--rollout-max-response-len", 8, "--rollout-buffer-url", url, "--save", tmp_path / "states", "--no-offload-rollout"),
    )

    async def work(state: str | None, rollouts: range, agent: range) -> tuple[list[list[str]], str]:
        manager = RolloutManager(*made)
        trained = []
        try:
            await manager.start([engine])
            if state is not None:
                manager.load_state(json.loads(state))
            posting = asyncio.create_task(asyncio.to_thread(post, url, agent))
            for rollout_id in rollouts:
                result = await manager.generate(rollout_id)
                assert [row.index for row in result.rows] == list(range(4 * rollout_id, 4 * rollout_id + 4))
                assert [row.raw_reward for row in result.rows] == [0, 1, 0, 1]
                assert [row.rollout_log_probs.tolist() for row in result.rows if row.rollout_log_probs is not None] == [
                    [-1, -0.25]
                ] * 4
                now = json.dumps(manager.state())
                state = now if rollout_id == rollouts[0] else state
                trained.append(json.loads(now)["external"]["used"])
            await posting
        finally:
            await manager.close()
        assert state is not None
        return trained, state

    try:
        first, saved = asyncio.run(work(None, range(2), range(6)))
        assert first == [["0", "1"], ["0", "1", "2", "3"]]
        again, _ = asyncio.run(work(saved, range(1, 3), range(0)))
        assert again == [["0", "1", "2", "3"], ["0", "1", "2", "3", "4", "5"]]
    finally:
        server.stop()
