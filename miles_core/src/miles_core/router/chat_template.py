"""A tokenizer's chat template: whole conversations, and what one more message adds to tokens that are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miles_core.router.chat_messages import Message

MARK = "MILESREPLY0MARK"
"""Stands for a reply, to find where it ends in the template's text."""
LONGEST_END = 16
"""Tokens that a template writes at most behind a reply."""


class ChatTemplate:
    """Renders by the template of ``tokenizer``.

    Args:
        tokenizer: of the model, with a chat template.
        options: further arguments of the template; those of a request come before them.
    """

    def __init__(self, tokenizer: Any, options: dict[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._options = options or {}

    def render(self, messages: Sequence[Message], tools: Any = None, options: dict[str, Any] | None = None) -> str:
        """The text of a conversation that the assistant is to go on with.

        Raises:
            ValueError: the template refuses it.
        """
        further = {**self._options, **(options or {})}
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tools=tools or None, tokenize=False, add_generation_prompt=True, **further
            )
        except Exception as error:
            # A template is a program: whatever it raises, these messages are not for it.
            raise ValueError(f"the chat template refuses the messages: {type(error).__name__}: {error}") from error
        return str(text)

    def after(
        self, messages: Sequence[Message], reply: int, tools: Any = None, options: dict[str, Any] | None = None
    ) -> str | None:
        """What the template writes behind the content of the assistant's message number ``reply``: its end, the messages that
        follow, and the beginning of the next reply. None when it cannot be told apart.
        """
        marked = [*messages[:reply], {"role": "assistant", "content": MARK}, *messages[reply + 1 :]]
        try:
            before, found, rest = self.render(marked, tools, options).rpartition(MARK)
        except ValueError:
            return None
        return rest if found and MARK not in before else None

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of the template's text, nothing added."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        """The text of token ids, with control tokens or without."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))


def go_on(output: Sequence[int], following: Sequence[int]) -> list[int]:
    """Ids that follow a reply, less those at their beginning that the reply ends with.

    Args:
        output: ids of the reply.
        following: ids of what the template writes behind it, which begins with the end of a reply.
    """
    most = min(len(output), len(following), LONGEST_END)
    shared = next((n for n in range(most, 0, -1) if list(output[-n:]) == list(following[:n])), 0)
    return list(following[shared:])
