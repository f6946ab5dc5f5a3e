"""M247 and M248, M445 and M446: the router."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

ROUTER_OPTIONS: dict[str, Explanation] = {
    "M247": Explanation(
        title="A number for the router that is out of range",
        meaning="The router needs at least one connection, one failure, and a time above 0.",
        remedy="Give a number that is in range, or leave the option out.",
        example="M247 miles-core 0.1.0: --miles-router-max-connections 0 (argument 5) is out of range. Do: give 1 or more",
    ),
    "M248": Explanation(
        title="A router's API key that cannot be used",
        meaning=(
            "`--miles-router-api-key` was given on the command line or in a file, where others can read it, or it has characters "
            "that an HTTP header cannot carry."
        ),
        remedy="Put the key in the environment variable `MILES_MILES_ROUTER_API_KEY`.",
        example=(
            "M248 miles-core 0.1.0: --miles-router-api-key is given in argument 3: others can read command lines and files. Do: "
            "put it in the environment variable MILES_MILES_ROUTER_API_KEY"
        ),
    ),
}

ROUTER_RUN: dict[str, Explanation] = {
    "M445": Explanation(
        title="The router does not pass calls on to the engines",
        meaning="When the run started, the router had been told of the engines and none of them answered it.",
        remedy="See the logs of the router and the engines in the run folder.",
        example=(
            "M445 miles-core 0.1.0: the router http://127.0.0.1:41000 reaches none of 2 engines: GET /health: HTTP 503. "
            "Do: see the logs in runs/1/logs"
        ),
    ),
    "M446": Explanation(
        title="A middleware of the router failed",
        meaning="A function of `--miles-router-middleware-paths` raised, or returned something that is no response.",
        remedy="Let it return what `call_next(request)` returns, or an aiohttp response; its traceback is in the router's log.",
        example=(
            "M446 miles-core: the middleware 'my_agent.middleware.trace' failed: it returned NoneType. Do: let it return what "
            "call_next returns, or an aiohttp response"
        ),
    ),
}
