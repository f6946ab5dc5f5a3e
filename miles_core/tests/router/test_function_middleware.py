"""A function as a middleware: what goes through, and what becomes an error of its own."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from miles_core.plugins.adhoc import adapt, load_adhoc
from miles_core.router import exchange_of

FLAG = "--miles-router-middleware-paths"
SOURCE = """
from miles_core.router import exchange_of

async def shorter(request, call_next):
    exchange = exchange_of(request)
    document = await exchange.document()
    exchange.replace({**document, "input_ids": document["input_ids"][:1]})
    exchange.answered.append(lambda index, answer: told.append((index, answer["output_ids"])))
    return await call_next(request)

async def nothing(request, call_next):
    await call_next(request)

async def breaks(request, call_next):
    raise KeyError("mine")

told = []
"""


def middleware(tmp_path: Path, name: str):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    return adapt(load_adhoc(f"{file}:{name}", "middleware", FLAG), None)


def test_it_changes_the_body_and_hears_the_answers(play, tmp_path: Path) -> None:
    made = middleware(tmp_path, "shorter")

    async def scene(stage) -> None:
        status, answer = await stage.generate([5, 6, 7])
        assert (status, answer["meta_info"]["prompt_tokens"]) == (200, 1)
        assert len(await stage.stream([[8, 9], [10]])) == 1, "one prompt of the batch is left"
        assert made._function.__globals__["told"] == [(0, [5]), (0, [8])]

    play(scene, count=1, middlewares=(made,))


def test_its_failures_are_answers(play, tmp_path: Path) -> None:
    async def nothing(stage) -> None:
        status, answer = await stage.generate([1])
        assert status == 500
        assert answer["error"]["message"].startswith("M446 miles-core: the middleware")
        assert "it returned NoneType" in answer["error"]["message"]

    async def breaks(stage) -> None:
        status, answer = await stage.generate([1])
        assert status == 500
        assert "it failed with KeyError: 'mine'" in answer["error"]["message"]

    async def through(stage) -> None:
        stage.workers[0].mood = "refuses"
        assert (await stage.generate([1]))[0] == 400
        assert (await stage.post("/generate", "no object"))[0] == 400

    play(nothing, middlewares=(middleware(tmp_path, "nothing"),))
    play(breaks, middlewares=(middleware(tmp_path, "breaks"),))
    play(through, middlewares=(middleware(tmp_path, "nothing"),))


def test_it_may_answer_by_itself(play) -> None:
    async def own(request: web.Request, call_next) -> web.StreamResponse:
        if request.path != "/count":
            return await call_next(request)
        return web.json_response({"bytes": len(await exchange_of(request).body())})

    async def scene(stage) -> None:
        assert await stage.post("/count", [1, 2]) == (200, {"bytes": 6})
        assert (await stage.generate([1]))[0] == 200

    play(scene, middlewares=(own,))
