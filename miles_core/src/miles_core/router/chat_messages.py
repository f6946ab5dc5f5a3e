"""Messages of a chat: those that come in, in one form, and those that the model's text makes."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool", "function": "tool"}
"""Roles of OpenAI's API, and what templates call them."""
CALL_START, CALL_END = "<tool_call>", "</tool_call>"
_CALL = re.compile(rf"{CALL_START}\s*(.*?)\s*(?:{CALL_END}|\Z)", re.DOTALL)
_THOUGHT = re.compile(r"\A.*?</think>", re.DOTALL)


def read_messages(given: object) -> list[Message]:
    """The messages of a request as templates take them: content is text, and arguments of tool calls are objects.

    Raises:
        ValueError: they are none, or hold something but text.
    """
    if not isinstance(given, list) or not given:
        raise ValueError("messages must be a list of at least one message")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(given)]


def _message(given: object, where: str) -> Message:
    if not isinstance(given, Mapping) or given.get("role") not in ROLES:
        raise ValueError(f"{where} must be an object with one of the roles {', '.join(ROLES)}")
    message: Message = {"role": ROLES[given["role"]], "content": _content(given.get("content"), where)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if isinstance(given.get(name), str):
            message[name] = given[name]
    calls = given.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise ValueError(f"{where}.tool_calls must be a list")
        message["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return message


def _content(given: object, where: str) -> str:
    if given is None:
        return ""
    if isinstance(given, str):
        return given
    if isinstance(given, list) and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in given):
        return "".join(part["text"] for part in given)
    raise ValueError(f"{where}.content must be text, or a list of parts that are text")


def _call(given: object, where: str) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where} must have a function with a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            arguments = function["arguments"]  # what a model wrote that is no JSON stays the text that it is
    call = {"type": "function", "function": {"name": function["name"], "arguments": {} if arguments is None else arguments}}
    return {**call, "id": given["id"]} if isinstance(given.get("id"), str) else call


def parse_reply(text: str, *, tools: bool, stop: Sequence[str] = ()) -> Message:
    """The assistant's message in the model's text, in the form of :func:`read_messages`.

    Args:
        tools: whether to look for calls as Qwen and Hermes models write them, ``<tool_call>{"name": ..., "arguments":
            ...}</tool_call>``. One that is no such JSON leaves the text as it is.
        stop: texts that end a response; what follows them, and they, are not part of the message.
    """
    text = text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]
    if not tools or CALL_START not in text:
        return {"role": "assistant", "content": text}
    calls = []
    for found in _CALL.finditer(text):
        try:
            call = json.loads(found[1])
        except ValueError:
            return {"role": "assistant", "content": text}
        arguments = call.get("arguments", {}) if isinstance(call, dict) else None
        if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
            return {"role": "assistant", "content": text}
        function = {"name": call["name"], "arguments": arguments}
        calls.append({"type": "function", "function": function, "id": f"call_{uuid.uuid4().hex[:24]}"})
    return {"role": "assistant", "content": _CALL.sub("", text).strip(), "tool_calls": calls}


def wire_message(message: Message) -> Message:
    """A message of the assistant as OpenAI's API has it."""
    calls = [
        {**call, "function": {**call["function"], "arguments": _arguments(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    content = message["content"] or (None if calls else "")
    return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}


def _arguments(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def same_message(given: Message, known: Message) -> bool:
    """Whether a message that a client sends is one that it sent before, or that it was given.

    A reply may come back without its thoughts, without space around it, and without ids of its calls: clients drop these.
    """
    if given["role"] != known["role"]:
        return False
    if known["role"] != "assistant":
        return given == known
    if _functions(given) != _functions(known):
        return False
    ours, theirs = known["content"].strip(), given["content"].strip()
    return ours == theirs or _THOUGHT.sub("", ours).strip() == _THOUGHT.sub("", theirs).strip()


def _functions(message: Message) -> list[Any]:
    return [call["function"] for call in message.get("tool_calls", ())]
