"""A sample as plain JSON and back, with nothing lost. Arrays travel as base64 of little-endian bytes."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from miles_core.errors import RunError
from miles_core.samples import Invalid, Sample, Score, Scored, Status, Timeout

_ARRAYS = {"prompt_ids": "q", "response_ids": "q", "loss_mask": "b", "rollout_log_probs": "d"}
"""Fields that are lists of numbers, with the type code of :mod:`array`."""

_SCORES: dict[str, type[Scored | Invalid | Timeout]] = {"scored": Scored, "invalid": Invalid, "timeout": Timeout}


def encode_sample(sample: Sample) -> dict[str, Any]:
    """The sample as values of JSON.

    Raises:
        RunError: a field holds something that is no plain data (M408).
    """
    document: dict[str, Any] = {}
    for field in dataclasses.fields(sample):
        value = getattr(sample, field.name)
        if field.name in _ARRAYS and value is not None:
            document[field.name] = _pack(sample, field.name, value)
        elif field.name == "score":
            document[field.name] = None if value is None else _score(value)
        elif type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
            document[field.name] = {
                "dtype": value.dtype.str,
                "shape": list(value.shape),
                "bytes": base64.b64encode(value.tobytes()).decode(),
            }
        else:
            document[field.name] = value
    for name, value in document.items():
        _check(sample, name, value)
    return document


def decode_sample(document: dict[str, Any]) -> Sample:
    """The sample that :func:`encode_sample` was given."""
    values = dict(document)
    for name, code in _ARRAYS.items():
        if values.get(name) is not None:
            values[name] = _unpack(values[name], code)
    for name, value in values.items():
        if isinstance(value, dict) and value.keys() == {"dtype", "shape", "bytes"} and name != "metadata":
            import numpy as np

            values[name] = np.frombuffer(base64.b64decode(value["bytes"]), value["dtype"]).reshape(value["shape"]).copy()
    values["status"] = Status(values["status"])
    values["weight_versions"] = [(version, tokens) for version, tokens in values["weight_versions"]]
    if values["score"] is not None:
        kind, fields = values["score"]
        values["score"] = _SCORES[kind](**fields)
    return Sample(**values)


def _score(score: Score) -> list[Any]:
    fields = {field.name: getattr(score, field.name) for field in dataclasses.fields(score)}
    if isinstance(fields.get("value"), (int, float)):
        fields["value"] = float(fields["value"])
    return [next(name for name, kind in _SCORES.items() if kind is type(score)), fields]


def _check(sample: Sample, name: str, value: object) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise _odd(sample, name, error) from error


def _odd(sample: Sample, name: str, error: Exception) -> RunError:
    return RunError(
        "M408",
        f"sample {sample.index} cannot be saved: its {name} is no plain data",
        owner="miles-core",
        why=str(error),
        fix="keep numbers, texts, lists and mappings in samples, as JSON has them",
    )


def _pack(sample: Sample, name: str, values: Sequence[float]) -> str:
    try:
        packed = array(_ARRAYS[name], values)  # type: ignore[call-overload]
    except (TypeError, OverflowError) as error:
        raise _odd(sample, name, error) from error
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def _unpack(text: str, code: str) -> list[Any]:
    packed = array(code)
    packed.frombytes(base64.b64decode(text))
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()
