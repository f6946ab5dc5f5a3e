"""Samples whose responses come from the data, for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miles_core.data.files import Row
from miles_core.data.source import SCAN_ROWS, Cursor, Keys, batched, read_tools
from miles_core.data.store import RowStore
from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import UsageError
from miles_core.samples import Sample, Status


class SupervisedSource:
    """Rows as finished samples.

    A row is either a prompt with its label, which becomes the response and ends with the end-of-sequence token, or a list of
    messages that ends with an assistant turn, whose assistant turns are trained on. Every row is made once at the start, to find
    those that cannot be used, and again when it is trained on: memory does not depend on the number of rows.

    Attributes:
        dropped: rows over ``max_tokens``, or without a token to train on.

    Raises:
        UsageError: a row cannot be used (M301 to M306, M312 to M314, M318, M319, M322, M323), or no row can be trained on (M317).
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
        scratch: Path | None = None,
    ) -> None:
        self._keys = keys
        self._tokenizer = tokenizer
        self._templated = templated
        self._store = RowStore(file, scratch)
        self.dropped = 0
        for part in batched(self._store.scan(), SCAN_ROWS):
            for (record, _), sample in zip(part, self._made([row for _, row in part]), strict=True):
                if sample is None or (max_tokens is not None and len(sample.tokens) > max_tokens):
                    self.dropped += 1
                else:
                    self._store.keep(record)
        if not len(self._store):
            raise UsageError(
                "M317",
                "no row can be trained on",
                owner=file,
                why=f"all {self.dropped} rows are too long or have no response",
                fix="give rows with responses, or raise --rollout-max-context-len",
            )
        self._cursor = Cursor(len(self._store), shuffle=shuffle, seed=seed)
        self._samples = 0

    def __len__(self) -> int:
        return len(self._store)

    def next_samples(self, count: int) -> list[Sample]:
        """The next samples, numbered on; each is a group of its own."""
        taken = []
        for sample in self._made([self._store[position] for position in self._cursor.take(count)]):
            assert sample is not None, "a row that was kept has a response"
            sample.index = sample.group_index = self._samples
            sample.status = Status.COMPLETED
            taken.append(sample)
            self._samples += 1
        return taken

    def state(self) -> dict[str, Any]:
        """What :meth:`load_state` takes; plain JSON."""
        return {"cursor": self._cursor.state(), "samples": self._samples}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved place."""
        self._cursor.load_state(state["cursor"])
        self._samples = state["samples"]

    def _made(self, rows: Sequence[Row]) -> list[Sample | None]:
        """A sample of each row; None where there is nothing to train on."""
        for row in rows:
            self._tokenizer.check(row.required(self._keys.input), row.place)
        chats = [_ends_with_assistant(row.required(self._keys.input)) for row in rows]
        labelled = iter(self._from_labels([row for row, chat in zip(rows, chats, strict=True) if not chat]))
        return [self._from_messages(row) if chat else next(labelled) for row, chat in zip(rows, chats, strict=True)]

    def _from_labels(self, rows: Sequence[Row]) -> list[Sample | None]:
        keys, tokenizer = self._keys, self._tokenizer
        prompts = [row.required(keys.input) for row in rows]
        labels = [self._label(row) for row in rows]
        texts = [tokenizer.render(p, read_tools(row, keys.tools), row.place) for p, row in zip(prompts, rows, strict=True)]
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
        tools = read_tools(row, self._keys.tools)
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
