"""Which prompt comes next."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from miles_core.data.files import Row, read_rows
from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import UsageError
from miles_core.samples import Sample


@dataclass(frozen=True)
class Keys:
    """Where a row keeps what. A key of None is not used."""

    input: str = "input"
    label: str | None = None
    metadata: str = "metadata"
    tools: str = "tools"


class PromptSet:
    """The prompts of one file, tokenised once each: all at the start when a length limit must sort them out, else when first used.

    Raises:
        UsageError: a row cannot be used (M301 to M306, M312 to M314), or none is short enough (M315).

    Attributes:
        dropped: prompts over ``max_tokens``.
    """

    def __init__(self, file: str, keys: Keys, tokenizer: PromptTokenizer, max_tokens: int | None = None) -> None:
        self.file = file
        self._keys = keys
        self._tokenizer = tokenizer
        self._ids: dict[int, list[int]] = {}
        rows = read_rows(file)
        for row in rows:
            self._check(row)
        self.rows = rows
        self.dropped = 0
        if max_tokens is not None:
            encoded = self._encode(rows)
            kept = [i for i, ids in enumerate(encoded) if len(ids) <= max_tokens]
            self.dropped = len(rows) - len(kept)
            self.rows = [rows[i] for i in kept]
            self._ids = {new: encoded[old] for new, old in enumerate(kept)}
            if not kept:
                shortest = min(map(len, encoded))
                raise UsageError(
                    "M315",
                    f"every prompt is longer than {max_tokens} tokens",
                    owner=file,
                    why=f"the shortest has {shortest}",
                    fix="raise the limit on prompt length",
                )
        else:
            # What is wrong with every row, such as a template that refuses them, shows before the run starts.
            self._ids[0] = self._encode(rows[:1])[0]

    def __len__(self) -> int:
        return len(self.rows)

    def metadata(self, position: int) -> dict[str, Any]:
        """The metadata of the row at a position, as read."""
        return self.rows[position].mapping(self._keys.metadata)

    def sample(self, position: int) -> Sample:
        """A fresh sample of the prompt at a position; index and group are the caller's to set."""
        row = self.rows[position]
        metadata = row.mapping(self._keys.metadata)
        tools = row.values.get(self._keys.tools)
        if tools is not None:
            metadata["tools"] = tools
        if position not in self._ids:
            self._ids[position] = self._encode([row])[0]
        return Sample(
            prompt=row.required(self._keys.input),
            prompt_ids=list(self._ids[position]),
            label=row.required(self._keys.label) if self._keys.label is not None else None,
            metadata=metadata,
        )

    def _check(self, row: Row) -> None:
        if self._keys.label is not None:
            row.required(self._keys.label)
        self._tokenizer.check(row.required(self._keys.input), row.place)
        row.mapping(self._keys.metadata)

    def _encode(self, rows: Sequence[Row]) -> list[list[int]]:
        keys = self._keys
        texts = [self._tokenizer.render(row.required(keys.input), row.values.get(keys.tools), row.place) for row in rows]
        encoded = self._tokenizer.encode(texts)
        for row, ids in zip(rows, encoded, strict=True):
            if not ids:
                raise UsageError("M306", "a prompt has no tokens", owner=row.place, fix="repair the row, or remove it")
        return encoded


class Cursor:
    """Positions in a data set of ``size`` rows, epoch after epoch, each in an order of its own when shuffled."""

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
            part = self._order[self._offset : self._offset + count - len(taken)]
            self._offset += len(part)
            taken += part
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

    def _ordered(self) -> list[int]:
        order = list(range(self._size))
        if self._shuffle:
            random.Random(self._seed + self._epoch).shuffle(order)
        return order


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
