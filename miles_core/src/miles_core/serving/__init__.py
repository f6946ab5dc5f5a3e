"""The HTTP surface of engines: wire format, server and client."""

from miles_core.serving.client import EngineClient, assign
from miles_core.serving.listener import ServerThread
from miles_core.serving.server import engine_app
from miles_core.serving.service import EngineService, PauseMode

__all__ = ["EngineClient", "EngineService", "PauseMode", "ServerThread", "assign", "engine_app"]
