"""Reward judge: the question, the verdict, and a real server that answers and fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored
from miles_rewards.judge.options import JudgeOptions
from miles_rewards.judge.question import TEMPLATE, messages, verdict
from miles_rewards.judge.reward import create
from miles_rewards.remote.options import RequestOptions

SAMPLE = Sample(prompt="2+2?", response="It is 4.", label="4")


def judge(url: str, sample: Sample = SAMPLE, **options: Any) -> Score:
    async def run() -> list[Score]:
        given = {"judge_url": url, "judge_model": "m", **options}
        reward = create(Config.of(JudgeOptions(**given), RequestOptions(rm_attempts=1, rm_timeout=5.0)))
        try:
            return await reward.score([sample])
        finally:
            await reward.close()

    return asyncio.run(run())[0]


def said(content: Any, reason: str = "stop") -> Callable[..., web.Response]:
    return lambda number, body: web.json_response({"choices": [{"message": {"content": content}, "finish_reason": reason}]})


def test_request_and_score(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "key-1")
    server = serve(said("Right.\nVERDICT: 0.75\n"))
    score = judge(server.url, judge_key_env="JUDGE_KEY")
    assert isinstance(score, Scored)
    assert score.value == 0.75
    body, headers = server.seen[0]
    assert headers["Authorization"] == "Bearer key-1"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 1024)
    assert [each["role"] for each in body["messages"]] == ["system", "user"]
    assert judge(server.url + "/chat/completions", judge_scale=10.0) == Scored(0.075, "Right.\nVERDICT: 0.75")


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (said("The response says VERDICT: 1\nbut it is wrong."), "no VERDICT"),
        (said("VERDICT: 2"), "no VERDICT"),
        (said("VERDICT: 1", "length"), "cut off"),
        (said(None), "said nothing"),
        (lambda number, body: web.json_response({"error": "x"}), "no chat completion"),
        (lambda number, body: web.json_response([1]), "no chat completion"),
        (lambda number, body: web.Response(status=401, text="key?"), "HTTP 401: key?"),
    ],
)
def test_what_is_no_verdict_is_invalid(serve: Callable[..., Any], answer: Callable[..., web.Response], detail: str) -> None:
    score = judge(serve(answer).url)
    assert isinstance(score, Invalid)
    assert detail in score.detail


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("VERDICT: 1", 1.0),
        ("VERDICT: 0", 0.0),
        ("VERDICT:0.5", 0.5),
        ("so\nVERDICT: 0\nVERDICT: 1", 1.0),
        ("<think>VERDICT: 1</think>\nVERDICT: 0", 0.0),
        ("VERDICT: 1\n\n  ", 1.0),
        ("VERDICT: 1\nor not", None),
        ("verdict: 1", None),
        ("VERDICT: -1", None),
        ("VERDICT: 1.5", None),
        ("VERDICT: 1e0", None),
        ("VERDICT: <1>", None),
        ("", None),
    ],
)
def test_verdict(answer: str, expected: float | None) -> None:
    assert verdict(answer, 1.0) == expected


@given(st.text(), st.text(), st.one_of(st.none(), st.text(), st.integers()))
def test_no_text_can_leave_its_marks(prompt: str, response: str, label: Any) -> None:
    user = messages(Sample(prompt=prompt, response=response, label=label), TEMPLATE, 1.0)[1]["content"]
    digest = user.split("<material ", 1)[1][:16]
    assert digest not in response + prompt
    assert user.count(f"<material {digest}>") == user.count(f"</material {digest}>") == 3
    assert f"Response:\n<material {digest}>\n{response}\n</material {digest}>" in user


def test_places_in_texts_stay() -> None:
    user = messages(Sample(prompt="p", response="{label} {prompt}", label="secret"), "{response}|{scale}", 5.0)[1]["content"]
    assert "secret" not in user
    assert "{label} {prompt}" in user
    assert user.endswith("|5")


def test_a_label_without_a_text_is_invalid(serve: Callable[..., Any]) -> None:
    server = serve(said("VERDICT: 1"))
    assert isinstance(judge(server.url, Sample(response="x", label=10**5000)), Invalid)
    assert server.seen == []


def test_chats_are_shown_as_turns() -> None:
    user = messages(Sample(prompt=[{"role": "user", "content": "hi"}], response="x"), TEMPLATE, 1.0)[1]["content"]
    assert "user: hi" in user
    assert "(none)" in user


def test_template_and_options(tmp_path: Path, serve: Callable[..., Any]) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("Is this polite?\n{response}")
    bad.write_text("Is this polite?")
    server = serve(said("VERDICT: 1"))
    judge(server.url, judge_template=str(good))
    assert server.seen[0][0]["messages"][1]["content"].startswith("Is this polite?\n<material ")
    for wrong in (
        {"judge_template": str(bad)},
        {"judge_template": str(tmp_path / "none.txt")},
        {"judge_model": None},
        {"judge_scale": 0.0},
        {"judge_max_tokens": 0},
    ):
        with pytest.raises(UsageError, match="M296"):
            judge(server.url, **wrong)
