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
        except Exception as error:
            # Unusable files raise whatever the part that met them raises, down to plain ``Exception``.
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise UsageError(
                "M310", "there is no tokenizer", owner=str(checkpoint), why=why, fix="add the tokenizer's files to the checkpoint"
            ) from error
        if len(self.tokenizer) <= len(self.tokenizer.all_special_tokens):
            # Without its files some tokenizer classes load all the same, and turn every text into nothing.
            raise UsageError(
                "M310",
                "there is no tokenizer",
                owner=str(checkpoint),
                why="it has no vocabulary",
                fix="add the tokenizer's files to the checkpoint",
            )
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
        # A tokenizer may end every text, and the model would have to answer after the end.
        whole, bare = (self.tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
        self._ends = self.end_id is not None and whole[-1:] == [self.end_id] and len(whole) > len(bare) and bare[-1:] != whole[-1:]
        # Text that holds a control token that the template writes literally has been through a template already. One that
        # many templates take from the tokenizer, such as <s>, may be text; it tells only at the front.
        added = (str(token) for token in getattr(self.tokenizer, "added_tokens_decoder", {}).values() if token.special)
        special = dict.fromkeys([*self.tokenizer.all_special_tokens, *added])
        self._control = tuple(t for t in special if template and t in str(template))
        self._front = self._bos if self._bos and "bos_token" in str(template or "") else None

    def check(self, prompt: Any, place: str = "") -> None:
        """Refuse what :meth:`render` cannot take, at the cost of a look.

        Raises:
            UsageError: the template was applied already (M312), messages come without a template (M314), or the prompt is neither
                text nor messages (M306).
        """
        if isinstance(prompt, str):
            found = next((t for t in self._control if t in prompt), None) if self._templated else None
            if self._templated and self._front is not None and prompt.startswith(self._front):
                found = self._front
            if found is not None:
                raise UsageError(
                    "M312",
                    "a prompt has been through a chat template already",
                    owner=place,
                    why=f"it holds {found!r}, which the template writes",
                    fix="leave --apply-chat-template out, or give the bare text",
                )
            return
        if not isinstance(prompt, list) or not prompt or not all(isinstance(m, dict) and "role" in m for m in prompt):
            raise UsageError(
                "M306",
                f"a prompt is {type(prompt).__name__}, neither text nor a list of messages with a role",
                owner=place,
                fix="repair the row, or name another key with --input-key",
            )
        if not self._templated:
            raise UsageError(
                "M314",
                "a prompt is a list of messages, but no template is applied",
                owner=place,
                fix="set --apply-chat-template, or give prompts as text",
            )

    def render(self, prompt: Prompt, tools: Any = None, place: str = "") -> str:
        """The text whose tokens are the prompt.

        Raises:
            UsageError: as :meth:`check`, or the template refuses the prompt (M313).
        """
        self.check(prompt, place)
        if not self._templated:
            assert isinstance(prompt, str)
            return prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
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
        """Token ids of each text, as a beginning that the model goes on from.

        Args:
            templated: whether the texts are a template's, which wrote its own special tokens, so that none are added; None for
                what :meth:`render` makes.
        """
        if not texts:
            return []
        added = not (self._templated if templated is None else templated)
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=added, return_attention_mask=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if added and bos is not None:
            # Text that begins with the token as written, to which the tokenizer adds its own.
            ids = [each[1:] if each[:2] == [bos, bos] else each for each in ids]
        if added and self._ends:
            ids = [each[:-1] for each in ids]
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
