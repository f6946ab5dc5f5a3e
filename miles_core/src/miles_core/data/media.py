"""Images, videos and sounds of prompts, from a row to the engine's request."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miles_core.data.files import Row
from miles_core.errors import UsageError

KINDS = ("image", "video", "audio")
_READY = re.compile(r"(https?|data|file):", re.IGNORECASE)


def with_media(prompt: Any, row: Row, keys: Mapping[str, str]) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The prompt as messages with parts, and what belongs to it by kind.

    Each ``<image>`` (``<video>``, ``<audio>``) in a text becomes a part that takes the next item of the row's list. Messages whose
    content is a list of parts stay as they are; they take items as they hold parts of the kind.

    Args:
        prompt: text or messages.
        keys: key of a row's items, by kind.

    Raises:
        UsageError: the prompt has more or fewer places than the row has items, or an item is nothing that can be loaded (M324).
    """
    items = {kind: _items(row, key) for kind, key in keys.items()}
    used = dict.fromkeys(keys, 0)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    places = re.compile("|".join(f"<{kind}>" for kind in keys))
    made = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and places.search(content):
            content = _parts(content, places)
        if isinstance(content, list):
            for part in content:
                if isinstance(part, dict) and part.get("type") in used:
                    used[part["type"]] += 1
        made.append({**message, "content": content})
    for kind, found in items.items():
        if used[kind] != len(found):
            raise UsageError(
                "M324",
                f"the prompt has {used[kind]} places for {kind}s and the row has {len(found)}",
                owner=row.place,
                fix=f"write <{kind}> once for each item under {keys[kind]!r}",
            )
    return made, {kind: found for kind, found in items.items() if found}


def engine_data(item: str) -> str:
    """An item as engines take it: a URL as it is, a file as a ``data:`` URL, anything else as the base64 that it is.

    Raises:
        UsageError: the file cannot be read (M324).
    """
    if _READY.match(item) or not item.startswith("/"):
        return item
    kind = mimetypes.guess_type(item)[0] or "application/octet-stream"
    try:
        return f"data:{kind};base64,{base64.b64encode(Path(item).read_bytes()).decode()}"
    except OSError as error:
        raise UsageError("M324", "an item of a prompt cannot be read", owner=item, why=str(error), fix="check the path") from error


def _parts(text: str, places: re.Pattern[str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    end = 0
    for place in places.finditer(text):
        parts += [{"type": "text", "text": text[end : place.start()]}] if place.start() > end else []
        parts.append({"type": place[0][1:-1]})
        end = place.end()
    return parts + ([{"type": "text", "text": text[end:]}] if end < len(text) else [])


def _items(row: Row, key: str) -> list[str]:
    value = row.values.get(key)
    given: Sequence[Any] = [] if value is None else value if isinstance(value, list) else [value]
    return [_item(each, row, key) for each in given]


def _item(value: Any, row: Row, key: str) -> str:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if not isinstance(value, str) or not value:
        why = f"an item is {type(value).__name__}"
        fix = "give paths, URLs or base64 text, or mappings with 'bytes' or 'path'"
        raise UsageError("M324", f"{key!r} holds something that cannot be loaded", owner=row.place, why=why, fix=fix)
    if _READY.match(value):
        return value
    # A path is relative to the file that names it; what names no file is base64.
    folder = Path(row.place.rpartition(":")[0]).absolute().parent
    try:
        file = folder / Path(value).expanduser()
        return str(file) if file.is_file() else value
    except (OSError, ValueError):
        return value
