"""Samples whose responses come from the data, for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miles_core.data.files import Row, read_rows
from miles_core.data.source import Cursor, Keys
from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import UsageError
from miles_core.samples import Sample, Status


class SupervisedSource:
    """Rows as finished samples.

    A row is either a prompt with its label, which becomes the response and ends with the end-of-sequence token, or a list of
    messages that ends with an assistant turn, whose assistant turns are trained on.

    Attributes:
        dropped: rows over ``max_tokens``, or without a token to train on.

    Raises:
        UsageError: a row cannot be used (M301 to M306, M312 to M314, M318, M319), or no row can be trained on (M317).
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
        rows = read_rows(file)
        for row in rows:
            tokenizer.check(row.required(keys.input), row.place)
        chats = [_ends_with_assistant(row.required(keys.input)) for row in rows]
        labelled = iter(self._from_labels([row for row, chat in zip(rows, chats, strict=True) if not chat]))
        samples = [self._from_messages(row) if chat else next(labelled) for row, chat in zip(rows, chats, strict=True)]
        self._made = [s for s in samples if s is not None and (max_tokens is None or len(s.tokens) <= max_tokens)]
        self.dropped = len(samples) - len(self._made)
        if not self._made:
            raise UsageError(
                "M317",
                "no row can be trained on",
                owner=file,
                why=f"all {len(samples)} rows are too long or have no response",
                fix="give rows with responses, or raise --rollout-max-context-len",
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

    def _from_labels(self, rows: Sequence[Row]) -> list[Sample | None]:
        keys, tokenizer = self._keys, self._tokenizer
        prompts = [row.required(keys.input) for row in rows]
        labels = [self._label(row) for row in rows]
        texts = [tokenizer.render(p, row.values.get(keys.tools), row.place) for p, row in zip(prompts, rows, strict=True)]
        prompt_ids = tokenizer.encode(texts)
        # A response goes on from its prompt, so the tokenizer adds nothing to it.
        response_ids = tokenizer.encode(labels, templated=True)
        end = tokenizer.end_id
        samples: list[Sample | None] = []
        for prompt, label, before, after in zip(prompts, labels, prompt_ids, response_ids, strict=True):
            if not before or not after:
                samples.append(None)
                continue
            closed = after if end is None or after[-1] == end else [*after, end]
            samples.append(Sample(prompt=prompt, prompt_ids=before, response_ids=closed, response=label, label=label))
        return samples

    def _label(self, row: Row) -> str:
        if self._keys.label is None:
            raise UsageError(
                "M318",
                "a row has a prompt and no response to train on",
                owner=row.place,
                fix="name the response's key with --label-key, or give messages that end with an assistant turn",
            )
        label = row.required(self._keys.label)
        if isinstance(label, bool) or not isinstance(label, str | int | float):
            raise UsageError(
                "M306",
                f"{self._keys.label!r} is {type(label).__name__}, not a response to train on",
                owner=row.place,
                fix="give the response as text",
            )
        return str(label)

    def _from_messages(self, row: Row) -> Sample | None:
        """Mask by rendering prefix after prefix: what an assistant turn adds behind its header is trained on."""
        messages: list[dict[str, Any]] = row.required(self._keys.input)
        tools = row.values.get(self._keys.tools)
        written = ""
        ids: list[int] = []
        mask: list[int] = []

        def extend(prefix: list[dict[str, Any]], generation: bool, trained: int) -> None:
            nonlocal written
            text = self._tokenizer.template(prefix, tools=tools, place=row.place, add_generation_prompt=generation)
            if not text.startswith(written):
                raise UsageError(
                    "M319",
                    "the chat template rewrites earlier turns, so that it cannot be told which tokens are whose",
                    owner=row.place,
                    fix="use a template that only appends, or train on --input-key and --label-key",
                )
            longer = self._tokenizer.encode([text], templated=True)[0]
            if longer[: len(ids)] != ids:
                # A token would reach over the seam. In sampling the prompt's tokens come first, and the response's follow.
                longer = ids + self._tokenizer.encode([text[len(written) :]], templated=True)[0]
            mask.extend([trained] * (len(longer) - len(ids)))
            ids[:] = longer
            written = text

        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                extend(messages[:i], True, 0)
                extend(messages[: i + 1], False, 1)
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


def _ends_with_assistant(prompt: Any) -> bool:
    return isinstance(prompt, list) and prompt[-1]["role"] == "assistant"
