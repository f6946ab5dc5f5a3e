"""An agent that knows nothing of training: it talks to an OpenAI-compatible endpoint, and may try twice.

``--custom-generate-function-path examples/black-box-agent/agent.py:agent`` trains the model behind it.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen


def agent(sample: Any, base_url: str) -> None:
    """Asks the model, tells it when its answer is wrong, and lets it try again."""
    messages = [{"role": "user", "content": sample.prompt}]
    for attempt in range(2):
        reply = complete(base_url, messages)
        sample.metadata.update(answer=reply["content"], attempts=attempt + 1)
        if reply["content"] == sample.label:
            break
        messages += [reply, {"role": "user", "content": "wrong, try again"}]


def complete(base_url: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The model's next message; any client of OpenAI's API does as well."""
    body = json.dumps({"model": "policy", "messages": messages, "max_tokens": 8}).encode()
    with urlopen(Request(f"{base_url}/chat/completions", body, {"Content-Type": "application/json"}), timeout=600) as answer:
        message: dict[str, Any] = json.load(answer)["choices"][0]["message"]
    return message


def reward(sample: Any) -> float:
    """The share of the last answer's characters that are right, and a tenth less for a second attempt."""
    said = sample.metadata.get("answer", "")
    right = sum(a == b for a, b in zip(said, sample.label, strict=False)) / max(len(said), len(sample.label))
    return right - 0.1 * (sample.metadata.get("attempts", 1) - 1)
