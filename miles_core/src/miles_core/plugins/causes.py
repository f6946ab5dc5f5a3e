"""What somebody else's exception says, in a few words."""

from __future__ import annotations

import traceback
from pathlib import Path

_MACHINERY = ("<frozen", "importlib", "stevedore", "miles_core/plugins")


def describe(error: BaseException) -> str:
    """Type, message and place of an exception: ``ValueError: boom (plugin.py:12)``. Newlines are for the caller to fold."""
    text = type(error).__name__
    try:
        message = str(error)
    except Exception as broken:
        message = f"its message fails with {type(broken).__name__}"
    if message:
        text += f": {message}"
    place = _place(error)
    return f"{text} ({place})" if place else text


def _place(error: BaseException) -> str:
    """File and line of the innermost frame that is the plugin's own."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename.replace("\\", "/")
        if not any(part in name for part in _MACHINERY):
            path = Path(frame.filename)
            return f"{path.parent.name}/{path.name}:{frame.lineno}"
    return ""
