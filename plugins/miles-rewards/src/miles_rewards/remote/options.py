"""Options of rewards that a server computes, and their checks. Standard library and miles_core only."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from miles_core.errors import UsageError
from miles_core.options import option


@dataclass(frozen=True)
class RemoteOptions:
    """Remote reward"""

    rm_url: str | None = option(
        None, flag="--rm-url", metavar="URL", help="Where remote_rm posts each sample; used as it is, http:// or https://."
    )
    rm_auth_env: str | None = option(
        None,
        flag="--rm-auth-env",
        metavar="NAME",
        help="Environment variable with the token that remote_rm sends as Authorization: Bearer.",
    )


@dataclass(frozen=True)
class RequestOptions:
    """Requests of remote rewards"""

    rm_timeout: float = option(120.0, flag="--rm-timeout", help="Seconds that one request of a remote reward may take.")
    rm_attempts: int = option(
        10, flag="--rm-attempts", help="Requests per sample before it counts as failed; the waits between them grow to 30 s."
    )
    rm_concurrency: int = option(64, flag="--rm-concurrency", help="Requests of a remote reward in flight at once.")


def request_errors(options: RequestOptions, owner: str) -> Iterator[UsageError]:
    """M295 for numbers that no request could be made with."""
    if not 0 < options.rm_timeout < math.inf:
        yield UsageError("M295", f"--rm-timeout is {options.rm_timeout}", owner=owner, fix="give seconds, more than 0")
    if options.rm_attempts < 1:
        yield UsageError("M295", f"--rm-attempts is {options.rm_attempts}", owner=owner, fix="give 1 or more")
    if options.rm_concurrency < 1:
        yield UsageError("M295", f"--rm-concurrency is {options.rm_concurrency}", owner=owner, fix="give 1 or more")


def address_errors(url: str | None, flag: str, owner: str) -> Iterator[UsageError]:
    """M295 for a URL that is missing or that nothing can be posted to."""
    if not url:
        fix = f"name the server: {flag} http://host:port/path"
        yield UsageError("M295", f"{flag} is not given, so there is no server to ask", owner=owner, fix=fix)
        return
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        fix = "give it as http://host:port/path"
        yield UsageError("M295", f"{flag} is no address to post to", owner=owner, why=shown(url), fix=fix)


def token_errors(name: str | None, flag: str, owner: str) -> Iterator[UsageError]:
    """M295 for a variable that holds no token, or none that fits into a header."""
    if name is None:
        return
    value = os.environ.get(name, "")
    if not value.strip():
        fix = f"export {name}, or leave {flag} out"
        yield UsageError("M295", f"{flag} names {name}, and that environment variable is not set", owner=owner, fix=fix)
    elif not value.strip().isprintable() or not value.isascii():
        fix = "export the token as one line of plain characters"
        yield UsageError("M295", f"{flag} names {name}, whose value fits into no header", owner=owner, fix=fix)


def token(name: str | None, flag: str, owner: str) -> str | None:
    """The token that the variable holds; None without a variable.

    Raises:
        UsageError: M295, this process does not have it.
    """
    for error in token_errors(name, flag, owner):
        raise error
    return os.environ[name].strip() if name is not None else None


def shown(url: str) -> str:
    """The URL without what may be secret in it: user, password, query."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{host}{port}{parts.path}" if parts.scheme else parts.path
