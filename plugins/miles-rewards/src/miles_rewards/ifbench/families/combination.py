"""``combination:`` of IFEval."""

from __future__ import annotations

from miles_rewards.ifbench.instruction import Arguments, Check


def two_responses(response: str, given: Arguments) -> bool:
    """Two different texts with ``******`` between them."""
    del given
    parts = response.split("******")
    if not all(part.strip() for part in parts[1:-1]):
        return False
    texts = [part.strip() for part in parts if part.strip()]
    return len(texts) == 2 and texts[0] != texts[1]


def repeat_prompt(response: str, given: Arguments) -> bool:
    """The response begins with the prompt, in any case."""
    return response.strip().lower().startswith(given.text("prompt_to_repeat").lower())


TABLE: dict[str, Check] = {"repeat_prompt": repeat_prompt, "two_responses": two_responses}
