"""Evaluation sets: where they come from, and how each is sampled."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from miles_core.config import DataOptions, EvaluationOptions, RolloutOptions
from miles_core.errors import UsageError
from miles_core.options import Config


@dataclass(frozen=True)
class EvaluationSet:
    """One set, with everything resolved.

    Attributes:
        temperature: 0 is greedy.
        stop, stop_token_ids: what ends a response, besides the end-of-sequence token.
        max_context_len: most tokens of prompt and response together; None for no limit.
        rm_type: the reward that grades the set, over what its rows and the options say; None leaves it to those.
        metadata_overrides: entries that every row's metadata gets, over its own.
        custom_generate_function_path: the function that makes the set's responses; None for the run's.
    """

    name: str
    path: str
    input_key: str
    label_key: str | None
    metadata_key: str
    tool_key: str
    n_samples_per_eval_prompt: int
    temperature: float
    top_p: float
    top_k: int
    max_response_len: int
    max_prompt_len: int | None
    min_new_tokens: int
    max_context_len: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    rm_type: str | None = None
    metadata_overrides: Mapping[str, Any] = field(default_factory=dict)
    custom_generate_function_path: str | None = None

    def amend(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """A row's metadata with what the set lays over it."""
        named = {} if self.rm_type is None else {"rm_type": self.rm_type}
        return {**metadata, **named, **copy.deepcopy(dict(self.metadata_overrides))}


FIELDS = tuple(each.name for each in dataclasses.fields(EvaluationSet))
OPTIONAL = ("label_key", "max_prompt_len", "max_context_len", "rm_type", "custom_generate_function_path")
"""Settings that a set may do without."""
_KINDS = {each.name: re.match(r"\w+", str(each.type))[0] for each in dataclasses.fields(EvaluationSet)}  # type: ignore[index]
_RANGES: dict[str, tuple[float, float, str]] = {
    "n_samples_per_eval_prompt": (1, math.inf, "1 or more"),
    "temperature": (0, sys.float_info.max, "0 or more"),
    "top_p": (sys.float_info.min, 1, "more than 0, and at most 1"),
    "top_k": (-1, math.inf, "-1, or 1 or more"),
    "max_response_len": (1, math.inf, "1 or more"),
    "max_prompt_len": (1, math.inf, "1 or more"),
    "max_context_len": (2, math.inf, "2 or more"),
    "min_new_tokens": (0, math.inf, "0 or more"),
}


def evaluation_sets(config: Config) -> list[EvaluationSet]:
    """The sets that the options name. A set's own value wins over the file's ``defaults``, those over the ``--eval-...`` options,
    those over the options of the rollout; an explicit null counts as not given.

    Raises:
        UsageError: the file cannot be used or a setting is no legal value (M216), or it has a key that no set has (M321).
    """
    options = config.get(EvaluationOptions)
    if options.eval_interval is None:
        return []
    base = _base(config)
    if options.eval_config is not None:
        defaults, sets = _read(options.eval_config)
        return [_resolve(base, defaults, each, options.eval_config) for each in sets]
    words = options.eval_prompt_data or []
    return [_resolve(base, {}, {"name": name, "path": path}, "") for name, path in zip(words[::2], words[1::2], strict=True)]


def _base(config: Config) -> dict[str, Any]:
    evaluation, rollout, data = config.get(EvaluationOptions), config.get(RolloutOptions), config.get(DataOptions)

    def first(*values: Any) -> Any:
        return next((value for value in values if value is not None), None)

    return {
        "input_key": data.input_key,
        "label_key": data.label_key,
        "metadata_key": data.metadata_key,
        "tool_key": data.tool_key,
        "n_samples_per_eval_prompt": evaluation.n_samples_per_eval_prompt,
        "temperature": first(evaluation.eval_temperature, rollout.rollout_temperature),
        "top_p": first(evaluation.eval_top_p, rollout.rollout_top_p),
        "top_k": first(evaluation.eval_top_k, rollout.rollout_top_k),
        "max_response_len": first(evaluation.eval_max_response_len, rollout.rollout_max_response_len),
        "max_prompt_len": evaluation.eval_max_prompt_len,
        "min_new_tokens": evaluation.eval_min_new_tokens or 0,
        "max_context_len": first(evaluation.eval_max_context_len, rollout.rollout_max_context_len),
        "stop": tuple(rollout.rollout_stop or ()),
        "stop_token_ids": tuple(rollout.rollout_stop_token_ids or ()),
        "metadata_overrides": {},
    }


def _read(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        document: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, OmegaConfBaseException, YAMLError, ValueError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError("M216", "--eval-config cannot be used", owner=path, why=why, fix="repair it") from error
    body = document.get("eval", document) if isinstance(document, dict) else None
    sets = body.get("datasets") if isinstance(body, dict) else None
    if isinstance(sets, dict):
        sets = [{**each, "name": name} for name, each in sets.items() if isinstance(each, dict)]
    defaults = body.get("defaults") or {} if isinstance(body, dict) else None
    if not sets or not isinstance(sets, list) or not all(isinstance(s, dict) for s in sets) or not isinstance(defaults, dict):
        fix = "write datasets: [{name: NAME, path: FILE}]"
        raise UsageError("M216", "--eval-config has no list 'datasets' of mappings", owner=path, fix=fix)
    return defaults, sets


def _resolve(base: dict[str, Any], defaults: dict[str, Any], own: dict[str, Any], place: str) -> EvaluationSet:
    for key in [*defaults, *own]:
        if key not in FIELDS:
            near = difflib.get_close_matches(str(key), FIELDS, 1)
            raise UsageError(
                "M321",
                f"an evaluation set has no setting {key!r}",
                owner=place,
                fix=f"did you mean {near[0]!r}?" if near else f"use {', '.join(FIELDS)}",
            )
    given = {key: value for layer in (base, defaults, own) for key, value in layer.items() if value is not None}
    for name in ("stop", "stop_token_ids"):
        one = given[name]
        given[name] = tuple(one) if isinstance(one, list | tuple) else (one,)
    missing = [name for name in FIELDS if name not in given and name not in OPTIONAL]
    if missing:
        raise UsageError("M216", f"an evaluation set lacks {', '.join(missing)}", owner=place, fix="add it to the set")
    values: dict[str, Any] = {name: given.get(name) for name in FIELDS}
    for name, value in values.items():
        problem = _problem(name, value)
        if problem:
            raise UsageError("M216", f"evaluation set {values['name']}: {name} is {value!r}", owner=place, fix=f"give {problem}")
    return EvaluationSet(**values)


def _problem(name: str, value: Any) -> str:
    """What a setting must be instead; empty when it is fine."""
    kind = _KINDS[name]
    if value is None:
        return ""
    if kind == "str":
        return "" if isinstance(value, str) and value else "text"
    if kind == "Mapping":
        return "" if isinstance(value, dict) and all(isinstance(key, str) for key in value) else "a mapping"
    if name == "stop":
        return "" if all(isinstance(text, str) and text for text in value) else "texts that are not empty"
    if name == "stop_token_ids":
        return "" if all(type(token) is int and token >= 0 for token in value) else "token ids"
    if isinstance(value, bool) or not isinstance(value, int if kind == "int" else int | float):
        return "a whole number" if kind == "int" else "a number"
    lowest, highest, said = _RANGES[name]
    legal = lowest <= value <= highest and (name != "top_k" or value != 0)
    return "" if legal else said
