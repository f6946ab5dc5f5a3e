"""Samples whose responses come from the data, for supervised fine-tuning."""

from __future__ import annotations

from typing import Any

from miles_core.data.files import Row, read_rows
from miles_core.data.source import Cursor, Keys
from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import UsageError
from miles_core.samples import Sample, Status


class SupervisedSource:
    """Rows as finished samples.

    A row is either a text prompt with its label, which becomes the response and ends with the end-of-sequence token, or a list of
    messages, whose assistant turns are trained on.

    Attributes:
        dropped: rows over the length limit, or without a token to train on.
    """

    def __init__(
        self,
        file: str,
        keys: Keys,
        tokenizer: PromptTokenizer,
        *,
        templated: bool,
        shuffle: bool,
        seed: int,
        max_tokens: int | None = None,
    ) -> None:
        self._keys = keys
        self._tokenizer = tokenizer
        self._templated = templated
        self.dropped = 0
        samples = [self._sample(row) for row in read_rows(file)]
        self._made = [s for s in samples if s is not None and (max_tokens is None or len(s.tokens) <= max_tokens)]
        self.dropped = len(samples) - len(self._made)
        if not self._made:
            raise UsageError(
                "M317", "no row can be trained on", owner=file, why=f"all {len(samples)} rows are too long or have no response"
            )
        self._cursor = Cursor(len(self._made), shuffle=shuffle, seed=seed)
        self._samples = 0

    def __len__(self) -> int:
        return len(self._made)

    def next_samples(self, count: int) -> list[Sample]:
        """The next samples, numbered on; each is a group of its own."""
        taken = []
        for position in self._cursor.take(count):
            made = self._made[position]
            taken.append(
                Sample(
                    index=self._samples,
                    group_index=self._samples,
                    prompt=made.prompt,
                    prompt_ids=made.prompt_ids,
                    response_ids=made.response_ids,
                    response=made.response,
                    label=made.label,
                    loss_mask=made.loss_mask,
                    status=Status.COMPLETED,
                )
            )
            self._samples += 1
        return taken

    def state(self) -> dict[str, Any]:
        """What :meth:`load_state` takes; plain JSON."""
        return {"cursor": self._cursor.state(), "samples": self._samples}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved place."""
        self._cursor.load_state(state["cursor"])
        self._samples = state["samples"]

    def _sample(self, row: Row) -> Sample | None:
        prompt = row.required(self._keys.input)
        if isinstance(prompt, list) and prompt and prompt[-1].get("role") == "assistant":
            return self._from_messages(row, prompt)
        if self._keys.label is None:
            raise UsageError(
                "M318",
                "a row has a prompt and no response to train on",
                owner=row.place,
                fix="name the response's key with --label-key, or give messages that end with an assistant turn",
            )
        label = row.required(self._keys.label)
        text = self._tokenizer.render(prompt, row.values.get(self._keys.tools), row.place)
        prompt_ids = self._tokenizer.encode([text])[0]
        response_ids = self._tokenizer.encode([str(label)], templated=True)[0]
        end = self._tokenizer.end_id
        if end is not None and response_ids[-1:] != [end]:
            response_ids = [*response_ids, end]
        if not response_ids or not prompt_ids:
            return None
        return Sample(prompt=prompt, prompt_ids=prompt_ids, response_ids=response_ids, response=str(label), label=label)

    def _from_messages(self, row: Row, messages: list[dict[str, Any]]) -> Sample | None:
        """Mask by rendering prefix after prefix: what an assistant turn adds behind its header is trained on."""
        if not self._templated:
            raise UsageError(
                "M314",
                "a prompt is a list of messages, but no template is applied",
                owner=row.place,
                fix="set --apply-chat-template, or give prompts as text",
            )
        tools = row.values.get(self._keys.tools)
        ids: list[int] = []
        mask: list[int] = []

        def extend(prefix: list[dict[str, Any]], generation: bool, trained: int) -> None:
            text = self._tokenizer.template(prefix, tools=tools, place=row.place, add_generation_prompt=generation)
            longer = self._tokenizer.encode([text], templated=True)[0]
            if longer[: len(ids)] != ids:
                raise UsageError(
                    "M319",
                    "the chat template rewrites earlier turns, so that it cannot be told which tokens are whose",
                    owner=row.place,
                    fix="use a template that only appends, or train on --input-key and --label-key",
                )
            mask.extend([trained] * (len(longer) - len(ids)))
            ids[:] = longer

        for i, message in enumerate(messages):
            if message.get("role") == "assistant":
                extend(messages[:i], True, 0)
                extend(messages[: i + 1], False, 1)
            elif i + 1 == len(messages) or messages[i + 1].get("role") != "assistant":
                extend(messages[: i + 1], False, 0)
        if 1 not in mask or mask.index(1) == 0:
            return None
        first = mask.index(1)
        return Sample(
            prompt=messages,
            prompt_ids=ids[:first],
            response_ids=ids[first:],
            response=str(messages[-1].get("content", "")),
            loss_mask=mask[first:],
        )
