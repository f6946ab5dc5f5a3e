"""The wire format: SGLang's ``/generate`` shapes, between JSON documents and :mod:`miles_core.samples`.

Log-probs are float32 numbers held in Python floats; JSON writes and reads such a number without loss.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, SamplingParams

MEDIA = ("image", "video", "audio")
"""Kinds of media; a request carries them as ``image_data`` and so on."""
DONE = b"data: [DONE]\n\n"
"""Ends a stream of server-sent events."""


@dataclass(frozen=True)
class GenerateCall:
    """One HTTP call: its requests, whether it held a list, and how to answer."""

    requests: tuple[GenerateRequest, ...]
    batched: bool
    stream: bool
    return_logprob: bool


def dumps(document: Any) -> bytes:
    """Compact JSON. ``NaN`` and infinities are refused: they are no JSON."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def encode_call(requests: Sequence[GenerateRequest], *, batched: bool, stream: bool) -> bytes:
    """The body of ``POST /generate``; an unbatched call holds exactly one request."""
    if not batched and len(requests) != 1:
        raise ValueError(f"an unbatched call holds one request, not {len(requests)}")
    rids = [r.rid for r in requests]
    ids = [list(r.input_ids) for r in requests]
    shared: dict[SamplingParams, dict[str, Any]] = {}
    params = []
    for request in requests:
        if request.params not in shared:
            shared[request.params] = params_document(request.params)
        params.append(shared[request.params])
    document: dict[str, Any] = {
        "input_ids": ids if batched else ids[0],
        "sampling_params": params if batched else params[0],
        "rid": rids if batched else rids[0],
        "return_logprob": True,
        "stream": stream,
    }
    starts = [-1 if r.logprob_start is None else r.logprob_start for r in requests]
    if any(start >= 0 for start in starts):
        document["logprob_start_len"] = starts if batched else starts[0]
    for kind in MEDIA:
        media = [list((r.media or {}).get(kind, ())) for r in requests]
        if any(media):
            document[f"{kind}_data"] = media if batched else media[0]
    if any(r.return_routed_experts for r in requests):
        document["return_routed_experts"] = True
    return dumps(document)


def params_document(params: SamplingParams) -> dict[str, Any]:
    """``sampling_params`` of one request."""
    document: dict[str, Any] = {
        "max_new_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_new_tokens": params.min_new_tokens,
        "ignore_eos": params.ignore_eos,
        "skip_special_tokens": params.skip_special_tokens,
        "spaces_between_special_tokens": False,
        "no_stop_trim": True,
    }
    if params.stop:
        document["stop"] = list(params.stop)
    if params.stop_token_ids:
        document["stop_token_ids"] = list(params.stop_token_ids)
    if params.sampling_seed is not None:
        document["sampling_seed"] = params.sampling_seed
    return document


def decode_call(document: Any) -> GenerateCall:
    """What a body of ``POST /generate`` asks for.

    Raises:
        ValueError: the document is not a call; the message says where and why, on one line.
    """
    if not isinstance(document, Mapping):
        raise ValueError("the body must be a JSON object")
    ids = document.get("input_ids")
    if not isinstance(ids, list) or not ids:
        raise ValueError("input_ids must be a list of token ids, or a list of such lists; text prompts are not taken")
    batched = isinstance(ids[0], list)
    prompts = ids if batched else [ids]
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, list) or not prompt:
            raise ValueError(f"input_ids[{i}] must be a list of at least one token id")
        if not all(type(token) is int and token >= 0 for token in prompt):
            raise ValueError(f"input_ids[{i}] holds something that is not a token id")
    count = len(prompts)
    given = document.get("sampling_params") or {}
    given_params = given if isinstance(given, list) else [given] * count
    rid = document.get("rid")
    if rid is not None and not batched and not isinstance(rid, str):
        raise ValueError("rid must be a string")
    rids = rid if isinstance(rid, list) else [rid] if rid is not None else [uuid.uuid4().hex for _ in range(count)]
    if isinstance(rid, str) and batched:
        rids = [f"{rid}_{i}" for i in range(count)]
    for name, values in (("sampling_params", given_params), ("rid", rids)):
        if len(values) != count:
            raise ValueError(f"{name} has {len(values)} entries for {count} prompts")
    if not all(isinstance(r, str) and r for r in rids):
        raise ValueError("rid must be a string that is not empty, or a list of them")
    if len(set(rids)) != count:
        raise ValueError("the same rid is given twice")
    seen: dict[int, SamplingParams] = {}
    params = []
    for i, entry in enumerate(given_params):
        if id(entry) not in seen:
            seen[id(entry)] = read_params(entry, f"sampling_params[{i}]" if isinstance(given, list) else "sampling_params")
        params.append(seen[id(entry)])
    return_logprob = _flag(document, "return_logprob")
    starts = _starts(document, prompts) if return_logprob else [None] * count
    routed = [_flag(document, "return_routed_experts")] * count
    return GenerateCall(
        requests=tuple(
            GenerateRequest(*fields) for fields in zip(rids, prompts, params, starts, routed, _media(document, count), strict=True)
        ),
        batched=batched,
        stream=_flag(document, "stream"),
        return_logprob=return_logprob,
    )


def _media(document: Mapping[str, Any], count: int) -> list[Mapping[str, Sequence[str]] | None]:
    """``image_data`` and the like of each prompt: a text or a list of texts, for several prompts a list of such lists."""
    found: list[dict[str, Sequence[str]]] = [{} for _ in range(count)]
    for kind in MEDIA:
        given = document.get(f"{kind}_data")
        if given is None:
            continue
        values = given if count > 1 or (isinstance(given, list) and given and isinstance(given[0], list)) else [given]
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"{kind}_data does not have an entry for each of {count} prompts")
        for place, value in enumerate(values):
            items = [value] if isinstance(value, str) else value or []
            if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
                raise ValueError(f"{kind}_data must hold URLs or base64 text")
            if items:
                found[place][kind] = tuple(items)
    return [media or None for media in found]


def _starts(document: Mapping[str, Any], prompts: Sequence[Sequence[int]]) -> list[int | None]:
    """``logprob_start_len`` for each prompt; -1, which is the default, means none of its tokens."""
    given = document.get("logprob_start_len")
    values = given if isinstance(given, list) else [given] * len(prompts)
    if len(values) != len(prompts):
        raise ValueError(f"logprob_start_len has {len(values)} entries for {len(prompts)} prompts")
    starts: list[int | None] = []
    for value, prompt in zip(values, prompts, strict=True):
        if value is not None and (type(value) is not int or not -1 <= value < len(prompt)):
            raise ValueError(f"logprob_start_len must be -1 or a position in the prompt of {len(prompt)} tokens, not {value!r}")
        starts.append(None if value is None or value < 0 else value)
    return starts


def encode_result(result: GenerateResult, *, return_logprob: bool = True, index: int | None = None) -> dict[str, Any]:
    """The answer to one request; ``index`` is its place in a batched, streamed call."""
    reason: dict[str, Any] = {"type": result.finish_reason.value}
    if result.finish_reason is FinishReason.LENGTH:
        reason["length"] = len(result.output_ids)
    elif result.finish_reason is FinishReason.ABORT:
        reason["message"] = "aborted"
    meta: dict[str, Any] = {
        "id": result.rid,
        "finish_reason": reason,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": len(result.output_ids),
        "cached_tokens": 0,
        "weight_version": str(result.weight_version),
    }
    if return_logprob:
        pairs = zip(result.log_probs, result.output_ids, strict=True)
        meta["output_token_logprobs"] = [(log_prob, token, None) for log_prob, token in pairs]
        if result.input_log_probs is not None:
            meta["input_token_logprobs"] = [(log_prob, token, None) for log_prob, token in result.input_log_probs]
    if result.routed_experts is not None:
        meta["routed_experts"] = base64.b64encode(result.routed_experts).decode()
    document: dict[str, Any] = {"text": result.text, "output_ids": result.output_ids, "meta_info": meta}
    if index is not None:
        document["index"] = index
    return document


def decode_result(document: Any, rid: str) -> GenerateResult | None:
    """The result in an answer, or None when the answer is a chunk of a response that goes on.

    An aborted request that made no token may lack ``output_token_logprobs``.

    Raises:
        ValueError: the document is not an answer, or its parts contradict each other.
    """
    if not isinstance(document, Mapping):
        raise ValueError("the answer is not a JSON object")
    if "error" in document:
        error = document["error"]
        raise ValueError(str(error.get("message", error)) if isinstance(error, Mapping) else str(error))
    meta = document.get("meta_info")
    if not isinstance(meta, Mapping):
        raise ValueError("the answer has no meta_info")
    reason = meta.get("finish_reason")
    if reason is None:
        return None
    kind = reason.get("type") if isinstance(reason, Mapping) else reason
    pairs = meta.get("output_token_logprobs") or []
    output_ids = tuple(pair[1] for pair in pairs)
    given = document.get("output_ids")
    if given is not None and pairs and len(given) == len(pairs) and tuple(given) != output_ids:
        raise ValueError("output_ids and output_token_logprobs name different tokens")
    if not pairs and given and kind != FinishReason.ABORT:
        raise ValueError("the answer has tokens without log-probs")
    inputs, routed = meta.get("input_token_logprobs"), meta.get("routed_experts")
    version = str(meta.get("weight_version", "0"))
    return GenerateResult(
        rid=rid,
        output_ids=output_ids,
        log_probs=tuple(pair[0] for pair in pairs),
        finish_reason=FinishReason(str(kind)),
        # A server whose weights nobody has published to calls its version "default".
        weight_version=int(version) if version.lstrip("-").isdigit() else 0,
        text=str(document.get("text", "")),
        prompt_tokens=int(meta.get("prompt_tokens", 0)),
        input_log_probs=tuple((entry[0], entry[1]) for entry in inputs) if inputs is not None else None,
        routed_experts=base64.b64decode(routed, validate=True) if routed is not None else None,
    )


def read_params(entry: Any, where: str) -> SamplingParams:
    """``sampling_params`` of one request; ``where`` names them in messages.

    Raises:
        ValueError: it is no object, or a value is out of range.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be an object")

    def number(name: str, default: Any, kind: type, low: float, high: float) -> Any:
        value = entry.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind is int and not isinstance(value, int)):
            raise ValueError(f"{where}.{name} must be {'a whole number' if kind is int else 'a number'}, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{where}.{name} is {value}, out of range {low:g} to {high:g}")
        return kind(value)

    stop = entry.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise ValueError(f"{where}.stop must hold texts that are not empty")
    stop_ids = entry.get("stop_token_ids") or []
    if not isinstance(stop_ids, list) or not all(type(i) is int and i >= 0 for i in stop_ids):
        raise ValueError(f"{where}.stop_token_ids must be a list of token ids")
    top_k = number("top_k", -1, int, -1, 2**31)
    top_p = number("top_p", 1.0, float, 0.0, 1.0)
    if top_p == 0.0:
        raise ValueError(f"{where}.top_p must be above 0")
    return SamplingParams(
        max_new_tokens=number("max_new_tokens", 128, int, 0, 2**31),
        temperature=number("temperature", 1.0, float, 0.0, 1e6),
        top_p=top_p,
        top_k=top_k if top_k != 0 else -1,
        min_new_tokens=number("min_new_tokens", 0, int, 0, 2**31),
        stop=tuple(stop),
        stop_token_ids=tuple(stop_ids),
        ignore_eos=_flag(entry, "ignore_eos", where),
        skip_special_tokens=_flag(entry, "skip_special_tokens", where),
        sampling_seed=number("sampling_seed", None, int, -(2**63), 2**63 - 1),
    )


def _flag(document: Mapping[str, Any], name: str, where: str = "") -> bool:
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{where + '.' if where else ''}{name} must be true or false")
    return bool(value)
