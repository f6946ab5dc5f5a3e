"""The teacher of on-policy distillation: one source of it, with the policy's tokens."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from miles_core.config import RolloutOptions, TeacherOptions
from miles_core.options.value import Source
from miles_core.runtime.checks.checkpoint import CONFIG_FILE, check_model
from miles_core.runtime.checks.report import Report

NEEDS = "teacher"
"""Capability of an advantage estimator that needs teacher log-probs; ``teacher:--flag`` if only while that switch is on."""
REMOTE_ONLY = ("teacher_timeout", "teacher_concurrency", "teacher_retries", "teacher_api_key")


def needs_teacher(report: Report) -> str | None:
    """What needs teacher log-probs, in words; None when nothing does."""
    estimator = report.selection.advantage
    if estimator is None or report.supervised:
        return None
    if NEEDS in estimator.capabilities:
        return f"advantage {estimator.name}"
    switches = {name.partition(":")[2] for name in estimator.capabilities if name.startswith(f"{NEEDS}:")}
    return next((option.flag for option, value in report.config.items() if option.flag in switches and value.value is True), None)


def check_teacher(report: Report) -> None:
    """Check ``--teacher-load`` and ``--teacher-url``, and that one of them is there when something needs it."""
    options = report.peek(TeacherOptions)
    who = needs_teacher(report)
    given = [name for name in ("teacher_load", "teacher_url") if getattr(options, name) is not None]
    if who is None:
        for name in given if report.selection.advantage is not None or report.supervised else ():
            report.warn(f"{report.said(TeacherOptions, name)} has no effect: nothing that this run selects needs teacher log-probs")
    elif not given:
        fix = "give --teacher-load DIR, a model to score in the trainer, or --teacher-url URL, a server"
        report.error("M286", "there is no teacher", owner=who, why="it needs teacher log-probs", fix=fix)
    if len(given) == 2:
        said = " and ".join(report.said(TeacherOptions, name) for name in given)
        report.error("M286", f"{said} are both given", why="a run has one teacher", fix="leave one of them out")
    if options.teacher_load is not None:
        _check_folder(report, Path(options.teacher_load).expanduser())
    if options.teacher_url is not None:
        _check_url(report, options.teacher_url)
    else:
        for name in REMOTE_ONLY:
            if report.chosen(TeacherOptions, name):
                flag = f"--{name.replace('_', '-')}"
                report.warn(f"{flag} ({report.config.value(TeacherOptions, name).place}) has no effect: --teacher-url is not given")
    key = report.config.value(TeacherOptions, "teacher_api_key")
    if key.source in (Source.COMMAND_LINE, Source.FILE):
        why = "others can read command lines and files"
        fix = "put it in the environment variable MILES_TEACHER_API_KEY"
        report.error("M289", f"--teacher-api-key is given in {key.place}", why=why, fix=fix)


def _check_url(report: Report, url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        secret = parts.password is not None
    except ValueError:
        good, secret = False, False
    if not good:
        why = "it is no http:// or https:// address"
        report.error("M289", f"{report.said(TeacherOptions, 'teacher_url')} cannot be used", why=why, fix="give http://HOST:PORT")
    elif secret:
        fix = "take it out, and put a key in the environment variable MILES_TEACHER_API_KEY"
        report.error("M289", "--teacher-url holds a password", why="the run's folder keeps the options", fix=fix)


def _check_folder(report: Report, teacher: Path) -> None:
    said = report.said(TeacherOptions, "teacher_load")
    config = check_model(report, teacher, said)
    checkpoint = report.peek(RolloutOptions).hf_checkpoint
    if config is None or checkpoint is None:
        return
    policy = Path(checkpoint).expanduser()
    try:
        policy_config = json.loads((policy / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # check_checkpoint has said so
    sizes = vocab_size(policy_config), vocab_size(config)
    if sizes[0] is not None and sizes[1] is not None and sizes[0] > sizes[1]:
        report.error(
            "M288",
            f"{said} has a smaller vocabulary than the policy",
            owner=str(teacher / CONFIG_FILE),
            why=f"it scores {sizes[1]} tokens and the policy can sample {sizes[0]}",
            fix="take a teacher whose vocab_size is at least the policy's",
        )
    rollout = report.peek(RolloutOptions)
    parts = (rollout.rollout_max_prompt_len, rollout.rollout_max_response_len)
    longest = rollout.rollout_max_context_len or sum(part for part in parts if part is not None)
    positions = _text(config).get("max_position_embeddings")
    if isinstance(positions, int) and longest > positions:
        report.error(
            "M288",
            f"{said} is too short for the policy's responses",
            owner=str(teacher / CONFIG_FILE),
            why=f"it has {positions} positions (max_position_embeddings), and prompt and response may have {longest} tokens",
            fix="lower --rollout-max-context-len, or take another teacher",
        )
    _compare_tokens(report, policy, teacher, said)


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a model's config that is about text."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def _compare_tokens(report: Report, policy: Path, teacher: Path, said: str) -> None:
    ours, theirs = token_ids(policy), token_ids(teacher)
    if ours is None or theirs is None:
        folder = policy if ours is None else teacher
        why = f"{folder} has no tokenizer.json or vocab.json to read"
        report.warn(f"the tokens of {said} are not compared with the policy's: {why}")
        return
    wrong = [token for token, number in ours.items() if theirs.get(token) != number]
    if not wrong:
        return
    first = min(wrong, key=ours.__getitem__)
    there = f"has id {theirs[first]}" if first in theirs else "does not exist"
    report.error(
        "M287",
        f"{said} has other tokens than the policy",
        owner=str(teacher),
        why=f"{len(wrong)} of {len(ours)} tokens differ: {first!r}, which is {ours[first]} for the policy, {there} for the teacher",
        fix="take a teacher with the policy's tokenizer: log-probs of other tokens say nothing about these",
    )


def vocab_size(config: Mapping[str, Any]) -> int | None:
    """The rows of a model's vocabulary head, by its ``config.json``; None when it does not say."""
    size = _text(config).get("vocab_size", config.get("vocab_size"))
    return size if isinstance(size, int) else None


def token_ids(folder: Path) -> dict[str, int] | None:
    """Every token of a tokenizer with its id, from ``tokenizer.json``, else ``vocab.json``; None when neither can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = document["model"]["vocab"]
        # A unigram model lists pairs of token and score in the order of their ids.
        found = dict(vocabulary) if isinstance(vocabulary, dict) else {entry[0]: i for i, entry in enumerate(vocabulary)}
        return found | {token["content"]: token["id"] for token in document.get("added_tokens") or ()}
    try:
        found = dict(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    with contextlib.suppress(OSError, ValueError, TypeError):
        found |= json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    return found
