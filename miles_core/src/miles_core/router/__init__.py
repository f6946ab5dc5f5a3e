"""The router: one address in front of several engines."""

from miles_core.router.app import RouterServer, RouterSettings, router_app
from miles_core.router.exchange import Exchange, exchange_of
from miles_core.router.radix import RadixTree, Trace

__all__ = ["Exchange", "RadixTree", "RouterServer", "RouterSettings", "Trace", "exchange_of", "router_app"]
