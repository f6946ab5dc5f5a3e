"""What an engine offers to the HTTP server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, Protocol

from miles_core.samples import GenerateRequest, GenerateResult

PauseMode = Literal["abort", "retract", "in_place"]
PAUSE_MODES: tuple[PauseMode, ...] = ("abort", "retract", "in_place")


class EngineService(Protocol):
    """Called from the server's event loop. ``ValueError`` means a bad request (400), ``MilesError`` a refusal or a failure."""

    def submit(self, requests: Sequence[GenerateRequest]) -> AsyncGenerator[Sequence[GenerateResult], None]:
        """Generate; yields results in lists as they end, in any order. Closing the iterator early aborts the rest.

        Raises:
            ValueError: a request cannot be served, on the first iteration and before any other effect.
        """
        ...

    async def abort(self, rids: Sequence[str] | None) -> None:
        """End these requests, or all of them, as aborted with what was generated so far. Unknown ids are ignored."""
        ...

    async def health(self, generate: bool) -> None:
        """Return when the engine works; with ``generate``, after making a token where that is possible."""
        ...

    def info(self) -> dict[str, Any]:
        """Settings and state, for ``/server_info``."""
        ...

    def model_info(self) -> dict[str, Any]:
        """``model_path``, ``tokenizer_path``, ``is_generation`` and ``weight_version`` (text)."""
        ...

    async def pause(self, mode: PauseMode) -> None:
        """Stop decoding."""
        ...

    async def resume(self) -> None:
        """Undo :meth:`pause`."""
        ...

    async def flush(self) -> None:
        """Drop cached keys and values; refused while requests hold them."""
        ...

    async def release_memory(self, tags: Sequence[str] | None) -> None:
        """Free accelerator memory; None means all of it."""
        ...

    async def resume_memory(self, tags: Sequence[str] | None) -> None:
        """Undo :meth:`release_memory`."""
        ...
