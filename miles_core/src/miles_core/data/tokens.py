"""Prompts to token ids, exactly once: one chat template, one beginning-of-sequence token, nothing cut off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miles_core.errors import UsageError

Prompt = str | list[dict[str, Any]]


class PromptTokenizer:
    """A checkpoint's tokenizer with the run's way of making prompts.

    Args:
        checkpoint: HF directory.
        apply_chat_template: format prompts by the tokenizer's template; text becomes one user message.
        template_options: further arguments of the template.

    Raises:
        UsageError: there is no tokenizer (M310), or no template where one is asked for (M311).
    """

    def __init__(self, checkpoint: Path, *, apply_chat_template: bool, template_options: dict[str, Any] | None = None) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise UsageError(
                "M310", "there is no tokenizer", owner=str(checkpoint), why=why, fix="add the tokenizer's files to the checkpoint"
            ) from error
        self._templated = apply_chat_template
        self._options = template_options or {}
        template = getattr(self.tokenizer, "chat_template", None)
        if apply_chat_template and not template:
            raise UsageError(
                "M311",
                "the tokenizer has no chat template",
                owner=str(checkpoint),
                fix="leave --apply-chat-template out, or add a chat_template to the tokenizer",
            )
        self._bos: str | None = self.tokenizer.bos_token
        # Text that holds one of the template's own control tokens has been through a template already.
        self._control = tuple(t for t in self.tokenizer.all_special_tokens if template and t in str(template))

    def render(self, prompt: Prompt, tools: Any = None, place: str = "") -> str:
        """The text whose tokens are the prompt.

        Raises:
            UsageError: the template was applied already (M312), refuses the prompt (M313), or messages come without one (M314).
        """
        if not self._templated:
            if not isinstance(prompt, str):
                raise UsageError(
                    "M314",
                    "a prompt is a list of messages, but no template is applied",
                    owner=place,
                    fix="set --apply-chat-template, or give prompts as text",
                )
            return prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if isinstance(prompt, str) and any(token in prompt for token in self._control):
            raise UsageError(
                "M312",
                "a prompt has been through a chat template already",
                owner=place,
                why=f"it holds {next(t for t in self._control if t in prompt)!r}, which the template writes",
                fix="leave --apply-chat-template out, or give the bare text",
            )
        return self.template(messages, tools=tools, place=place, add_generation_prompt=True)

    def template(self, messages: list[dict[str, Any]], *, tools: Any = None, place: str = "", add_generation_prompt: bool) -> str:
        """The chat template's text.

        Raises:
            UsageError: the template refuses the messages (M313).
        """
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt, **self._options
            )
        except Exception as error:
            raise UsageError(
                "M313",
                "the chat template refuses a prompt",
                owner=place,
                why=f"{type(error).__name__}: {error}",
                fix="check the row's messages and --apply-chat-template-kwargs",
            ) from error
        return str(text)

    def encode(self, texts: Sequence[str], *, templated: bool | None = None) -> list[list[int]]:
        """Token ids of each text. A template writes its own special tokens, so none are added to its text."""
        if not texts:
            return []
        added = not (self._templated if templated is None else templated)
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=added, return_attention_mask=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if added and bos is not None:
            # Text that begins with the token as written, to which the tokenizer adds its own.
            ids = [each[1:] if each[:2] == [bos, bos] else each for each in ids]
        return ids

    def decode_all(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of token ids, special tokens included."""
        texts: list[str] = self.tokenizer.batch_decode([list(each) for each in ids], skip_special_tokens=False)
        return texts

    @property
    def end_id(self) -> int | None:
        """The end-of-sequence token."""
        end: int | None = self.tokenizer.eos_token_id
        return end
