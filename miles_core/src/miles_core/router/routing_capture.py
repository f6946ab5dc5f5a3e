"""Capture of routes: which experts the engines sent every token to, kept with the tokens for who asks by text."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from miles_core.options import Config
from miles_core.router.exchange import exchange_of
from miles_core.router.pool import as_version
from miles_core.router.radix import LAG, RadixTree, Unit

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

MEGABYTES = 512
"""What is kept at most."""
OVERHEAD = 300
"""Bytes that a token takes besides its routes."""


class RoutingCapture:
    """The middleware.

    ``POST /generate`` asks the engine for ``routed_experts`` where the client does not, and keeps them; then the answer does not
    have them. ``POST /retrieve_routed_experts`` with ``{"input_ids": [...]}`` answers with ``routed_experts``, base64 of int32
    ``[routed_tokens, layers, top_k]`` as engines send them, for the longest beginning of the tokens that is known: all of them but
    the last, where an engine took or made them. ``POST /retrieve_from_text`` of a text cache that is named before gets both keys
    added.

    Args:
        megabytes: kept at most; what was not used for longest goes first.
        lag: weight versions after which what was not seen again is dropped.
    """

    def __init__(self, megabytes: int = MEGABYTES, lag: int = LAG) -> None:
        self._bytes = megabytes << 20
        self._lag = lag
        self.tree: RadixTree | None = None

    async def __call__(
        self, request: web.Request, call_next: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """See :class:`miles_core.protocols.RouterMiddleware`."""
        from aiohttp import web

        if request.method == "POST" and request.path == "/retrieve_routed_experts":
            return web.json_response(self.find((await exchange_of(request).document()).get("input_ids")))
        if request.method == "POST" and request.path == "/retrieve_from_text":
            return self._extended(await call_next(request))
        if request.method != "POST" or request.path != "/generate":
            return await call_next(request)
        exchange = exchange_of(request)
        document = await exchange.document()
        wanted = document.get("return_routed_experts") is True
        if not wanted:
            exchange.replace({**document, "return_routed_experts": True})
        answers: list[tuple[int, dict[str, Any], str]] = []

        def take(index: int, answer: dict[str, Any]) -> None:
            meta = answer["meta_info"]
            routes = meta.get("routed_experts") if wanted else meta.pop("routed_experts", None)
            if isinstance(routes, str):
                answers.append((index, meta, routes))

        exchange.answered.append(take)
        response = await call_next(request)
        # Middlewares behind this one may have made tokens of a text by now.
        prompts: Any = (await exchange.document()).get("input_ids") if answers else None
        for index, meta, routes in answers:
            try:
                self.keep(prompts[index] if isinstance(prompts[0], list) else prompts, meta, routes)
            except (KeyError, TypeError, ValueError, IndexError):
                log.exception("the routes of an answer cannot be kept")
        return response

    def keep(self, prompt: Sequence[int], meta: dict[str, Any], routes: str) -> None:
        """Put the routes of an answer into the tree.

        Raises:
            ValueError: they are not of all tokens but the last.
        """
        ids = [*prompt, *(pair[1] for pair in meta.get("output_token_logprobs") or [])]
        data = base64.b64decode(routes, validate=True)
        size, left = divmod(len(data), max(1, len(ids) - 1))
        if left or size % 4 or not size:
            raise ValueError(f"{len(data)} bytes of routes for {len(ids)} tokens")
        if self.tree is None:
            self.tree = RadixTree(self._bytes // (size + OVERHEAD), self._lag)
        version = as_version(meta.get("weight_version")) or 0
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        units = [Unit(chr(token), (token,), _NONE, False, version, part) for token, part in zip(ids, parts, strict=False)]
        self.tree.insert(units, version)

    def find(self, ids: object) -> dict[str, Any]:
        """What is known of tokens.

        Raises:
            ValueError: they are no token ids.
        """
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token <= _MOST for token in ids):
            raise ValueError("input_ids must be a list of token ids")
        # A tree of texts is one of tokens when each is a character.
        found = () if self.tree is None else self.tree.find("".join(map(chr, ids))).routes
        routes = b"".join(part for part in found if part is not None)
        return {"routed_experts": base64.b64encode(routes).decode() if routes else None, "routed_tokens": len(found)}

    def _extended(self, response: web.StreamResponse) -> web.StreamResponse:
        from aiohttp import web

        if response.status != 200 or not isinstance(response, web.Response) or response.text is None:
            return response
        document = json.loads(response.text)
        return web.json_response({**document, **self.find(document.get("tokens"))})


_NONE = (0.0,)
_MOST = 0x10FFFF


def create(config: Config) -> RoutingCapture:
    """The middleware of a run; validation has found that its engines note routes."""
    return RoutingCapture()
