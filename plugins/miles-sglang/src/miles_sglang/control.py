"""Calls to a server's control endpoints."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from miles_core.errors import RunError

OWNER = "miles-sglang"


class Control:
    """Blocking calls to one server, past the proxies of the environment.

    Args:
        url: base URL.
        key: shown as a bearer token; None for none.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, timeout: float = 30.0) -> Any:
        """The answer to a GET: JSON, or text."""
        return self._call(urllib.request.Request(self.url + path, headers=self._headers), path, timeout)

    def delete(self, path: str, timeout: float = 30.0) -> Any:
        """The answer to a DELETE."""
        return self._call(urllib.request.Request(self.url + path, headers=self._headers, method="DELETE"), path, timeout)

    def post(self, path: str, document: Any = None, timeout: float = 60.0) -> Any:
        """The answer to a POST of JSON.

        Raises:
            RunError: M513, the server refused; M514, it does not answer.
        """
        body = json.dumps({} if document is None else document).encode()
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": "application/json", **self._headers})
        return self._call(request, path, timeout)

    def _call(self, request: urllib.request.Request, path: str, timeout: float) -> Any:
        try:
            with self._opener.open(request, timeout=timeout) as response:
                text = response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            why = f"HTTP {error.code}: {_message(error.read().decode(errors='replace'))}"
            what = f"the server at {self.url} refused {path.partition('?')[0]}"
            raise RunError("M513", what, owner=OWNER, why=why, fix="see the server's log", status=error.code) from error
        except (OSError, ValueError) as error:
            slow = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
            why = f"no answer within {timeout:g} s" if slow else str(getattr(error, "reason", error))
            what = f"the server at {self.url} does not answer {path.partition('?')[0]}"
            raise RunError("M514", what, owner=OWNER, why=why, fix="see the server's log") from error
        try:
            return json.loads(text)
        except ValueError:
            return text


def _message(text: str) -> str:
    """What an error says, on one line."""
    try:
        document = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:1000]
    if isinstance(document, dict):
        for key in ("message", "detail", "error"):
            found = document.get(key)
            if isinstance(found, dict):
                found = found.get("message")
            if found:
                return " ".join(str(found).split())[:1000]
    return " ".join(text.split())[:1000]
