"""Under which a request keeps its exchange. A module of its own, since aiohttp makes such keys only while a module is imported."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from miles_core.router.exchange import Exchange

KEY: Any = web.RequestKey("miles.exchange", Exchange) if hasattr(web, "RequestKey") else "miles.exchange"
