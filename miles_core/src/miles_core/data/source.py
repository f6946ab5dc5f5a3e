"""Which prompt comes next."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from miles_core.data.files import Row
from miles_core.data.media import with_media
from miles_core.data.order import Shuffle
from miles_core.data.store import RowStore
from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import UsageError
from miles_core.samples import Sample, row_reward

T = TypeVar("T")

SCAN_ROWS = 512
"""Rows that are in memory at once while files are looked through."""
REMEMBERED = 2048
"""Prompts whose tokens are kept, so that siblings and small sets are tokenised once."""


@dataclass(frozen=True)
class Keys:
    """Where a row keeps what. A key of None is not used."""

    input: str = "input"
    label: str | None = None
    metadata: str = "metadata"
    tools: str = "tools"
    media: Mapping[str, str] = field(default_factory=dict)
    """Keys of images and the like, by kind."""


class PromptSet:
    """The prompts of data files, in the order of the files; read and tokenised when they are used.

    Every row is looked at once at the start, and tokenised then too when a length limit must sort prompts out. Memory does not
    depend on the number of rows.

    Args:
        file: ``FILE``, ``FILE@[a:b]``, or several with commas between.
        max_tokens: longer prompts are left out.
        scratch: folder of temporary files; None for that of the system.

    Raises:
        UsageError: a row cannot be used (M301 to M306, M312 to M314, M322, M324), or none is short enough (M315).

    Attributes:
        dropped: prompts over ``max_tokens``.
        rewards: rows by the reward that their metadata names.
    """

    def __init__(
        self, file: str, keys: Keys, tokenizer: PromptTokenizer, max_tokens: int | None = None, scratch: Path | None = None
    ) -> None:
        self.file = file
        self._keys = keys
        self._tokenizer = tokenizer
        self._ids: dict[int, list[int]] = {}
        self._store = RowStore(file, scratch)
        self.dropped = 0
        self.rewards: Counter[str] = Counter()
        shortest: int | None = None
        for part in batched(self._store.scan(), SCAN_ROWS):
            for _, row in part:
                self._check(row)
            # What is wrong with every row, such as a template that refuses them, shows before the run starts.
            rows = [row for _, row in (part if max_tokens is not None else part[: 0 if len(self._store) else 1])]
            lengths = [len(ids) for ids in self._encode(rows)]
            if max_tokens is None:
                lengths = [0] * len(part)
            for (record, row), length in zip(part, lengths, strict=True):
                shortest = length if shortest is None else min(shortest, length)
                if max_tokens is not None and length > max_tokens:
                    self.dropped += 1
                    continue
                self._store.keep(record)
                name = row_reward(row.mapping(keys.metadata))
                if name:
                    self.rewards[name] += 1
        if not len(self._store):
            raise UsageError(
                "M315",
                f"every prompt is longer than {max_tokens} tokens",
                owner=file,
                why=f"the shortest has {shortest}",
                fix="raise the limit on prompt length",
            )

    def __len__(self) -> int:
        return len(self._store)

    def sample(self, position: int) -> Sample:
        """A fresh sample of the prompt at a position; index and group are the caller's to set."""
        row = self._store[position]
        metadata = row.mapping(self._keys.metadata)
        tools = read_tools(row, self._keys.tools)
        if tools is not None:
            metadata["tools"] = tools
        prompt, media = self._prompt(row)
        if position not in self._ids:
            if len(self._ids) >= REMEMBERED:
                self._ids.clear()
            self._ids[position] = self._encode([row])[0]
        return Sample(
            prompt=prompt,
            prompt_ids=list(self._ids[position]),
            label=row.required(self._keys.label) if self._keys.label is not None else None,
            metadata=metadata,
            media=media,
        )

    def _prompt(self, row: Row) -> tuple[Any, dict[str, list[str]]]:
        prompt = row.required(self._keys.input)
        return with_media(prompt, row, self._keys.media) if self._keys.media else (prompt, {})

    def _check(self, row: Row) -> None:
        if self._keys.label is not None:
            row.required(self._keys.label)
        self._tokenizer.check(row.required(self._keys.input), row.place)
        row.mapping(self._keys.metadata)
        read_tools(row, self._keys.tools)
        self._prompt(row)

    def _encode(self, rows: Sequence[Row]) -> list[list[int]]:
        texts = [self._tokenizer.render(self._prompt(row)[0], read_tools(row, self._keys.tools), row.place) for row in rows]
        encoded = self._tokenizer.encode(texts)
        for row, ids in zip(rows, encoded, strict=True):
            if not ids:
                raise UsageError("M306", "a prompt has no tokens", owner=row.place, fix="repair the row, or remove it")
        return encoded


def read_tools(row: Row, key: str) -> Any:
    """A row's tool definitions: a list, or one as JSON text; None when it has none.

    Raises:
        UsageError: it is something else (M323).
    """
    value = row.values.get(key)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = row.values[key]
    if value is None or isinstance(value, list):
        return value
    fix = "give a list of tool definitions, or one as JSON text"
    raise UsageError("M323", f"{key!r} is {type(value).__name__}, not a list of tools", owner=row.place, fix=fix)


def batched(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most ``size``, in order."""
    part: list[T] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


class Cursor:
    """Positions in a data set of ``size`` rows, epoch after epoch, each in an order of its own when shuffled.

    Its memory does not depend on ``size``: an order is computed position by position.
    """

    def __init__(self, size: int, *, shuffle: bool, seed: int) -> None:
        self._size = size
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0
        self._offset = 0
        self._order = self._ordered()

    def take(self, count: int) -> list[int]:
        """The next positions; the end of an epoch is followed by the start of the next."""
        taken: list[int] = []
        while len(taken) < count:
            if self._offset == self._size:
                self._epoch += 1
                self._offset = 0
                self._order = self._ordered()
            end = min(self._size, self._offset + count - len(taken))
            taken += [self._order[place] for place in range(self._offset, end)]
            self._offset = end
        return taken

    def state(self) -> dict[str, int]:
        """What :meth:`load_state` takes."""
        return {"epoch": self._epoch, "offset": self._offset, "size": self._size}

    def load_state(self, state: dict[str, int]) -> None:
        """Go on from a saved place.

        Raises:
            UsageError: the data has another number of rows (M316).
        """
        if state["size"] != self._size:
            raise UsageError(
                "M316",
                f"the prompts changed: {self._size} rows, and the saved state has seen {state['size']}",
                fix="resume with the same --prompt-data and --rollout-max-prompt-len, or start afresh without --load",
            )
        self._epoch, self._offset = state["epoch"], state["offset"]
        self._order = self._ordered()

    def _ordered(self) -> Shuffle | range:
        return Shuffle(self._size, f"{self._seed}:{self._epoch}") if self._shuffle else range(self._size)


@dataclass(frozen=True)
class _Place:
    """A prompt that was handed out: its position in the data, the numbers of its group and first sample, and its samples."""

    position: int
    group: int
    first: int
    size: int


class PromptSource:
    """Groups of samples in the order of the run. Prompts that nobody used can be given back, and are next."""

    def __init__(self, prompts: PromptSet, *, shuffle: bool, seed: int) -> None:
        self.prompts = prompts
        self._cursor = Cursor(len(prompts), shuffle=shuffle, seed=seed)
        self._groups = 0
        self._samples = 0
        self._out: dict[int, _Place] = {}
        self._returned: list[_Place] = []

    def next_groups(self, count: int, n_samples: int) -> list[list[Sample]]:
        """``count`` prompts with ``n_samples`` fresh samples each: those given back, under their old numbers, then others."""
        groups: list[list[Sample]] = []
        while self._returned and len(groups) < count:
            place = self._returned.pop(0)
            groups.append(self._group(place if place.size == n_samples else self._numbered(place.position, n_samples)))
        for position in self._cursor.take(count - len(groups)):
            groups.append(self._group(self._numbered(position, n_samples)))
        return groups

    def use(self, numbers: Iterable[int]) -> None:
        """The groups with these numbers are used, or kept elsewhere; others may still be out."""
        for number in numbers:
            self._out.pop(number, None)

    def settle(self, unused: Iterable[int] = ()) -> None:
        """End a rollout: the groups with these numbers were not used, so that their prompts come next; all others were."""
        self._returned = sorted([*self._returned, *(self._out[number] for number in unused)], key=lambda place: place.group)
        self._out.clear()

    def state(self) -> dict[str, Any]:
        """What :meth:`load_state` takes; plain JSON. What is out while a rollout runs counts as given back."""
        places = sorted([*self._returned, *self._out.values()], key=lambda place: place.group)
        returned = [[place.position, place.group, place.first, place.size] for place in places]
        return {"cursor": self._cursor.state(), "groups": self._groups, "samples": self._samples, "returned": returned}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved place."""
        self._cursor.load_state(state["cursor"])
        self._groups, self._samples = state["groups"], state["samples"]
        self._returned = [_Place(*place) for place in state.get("returned", [])]
        self._out.clear()

    def _numbered(self, position: int, size: int) -> _Place:
        place = _Place(position, self._groups, self._samples, size)
        self._groups += 1
        self._samples += size
        return place

    def _group(self, place: _Place) -> list[Sample]:
        group = []
        for index in range(place.first, place.first + place.size):
            sample = self.prompts.sample(place.position)
            sample.index, sample.group_index = index, place.group
            group.append(sample)
        self._out[place.group] = place
        return group
