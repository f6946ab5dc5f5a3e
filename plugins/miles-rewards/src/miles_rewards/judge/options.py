"""Options of the judge, and their checks. Standard library and miles_core only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from miles_core.errors import UsageError
from miles_core.options import option


@dataclass(frozen=True)
class JudgeOptions:
    """Judge"""

    judge_url: str | None = option(
        None,
        flag="--judge-url",
        metavar="URL",
        help="Base URL of an OpenAI-compatible server, such as http://host:8000/v1.",
    )
    judge_model: str | None = option(None, flag="--judge-model", help="Name of the model that judges.")
    judge_key_env: str | None = option(
        None,
        flag="--judge-key-env",
        metavar="NAME",
        help="Environment variable with the server's API key, sent as Authorization: Bearer.",
    )
    judge_template: str | None = option(
        None,
        flag="--judge-template",
        metavar="FILE",
        help="Text of the question to the judge, with {response} and, as needed, {prompt}, {label}, {scale}.",
    )
    judge_scale: float = option(1.0, flag="--judge-scale", help="The best verdict; the score is the verdict divided by it.")
    judge_max_tokens: int = option(1024, flag="--judge-max-tokens", help="Tokens that the judge may write.")


def judge_errors(options: JudgeOptions, owner: str) -> Iterator[UsageError]:
    """M296 for what no verdict can be asked for with."""
    if not options.judge_model:
        yield UsageError("M296", "--judge-model is not given", owner=owner, fix="name the model as the server knows it")
    if not 0 < options.judge_scale < math.inf:
        yield UsageError("M296", f"--judge-scale is {options.judge_scale}", owner=owner, fix="give the best verdict, more than 0")
    if options.judge_max_tokens < 1:
        yield UsageError("M296", f"--judge-max-tokens is {options.judge_max_tokens}", owner=owner, fix="give 1 or more")
    if options.judge_template is not None:
        try:
            read_template(options.judge_template, owner)
        except UsageError as error:
            yield error


def read_template(path: str, owner: str) -> str:
    """The text of a template.

    Raises:
        UsageError: M296, it cannot be read or has no place for the response.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError("M296", f"--judge-template {path} cannot be read", owner=owner, why=why, fix="check the path") from error
    if "{response}" not in text:
        fix = "write {response} where the response belongs"
        raise UsageError("M296", f"--judge-template {path} has no place for the response", owner=owner, fix=fix)
    return text
