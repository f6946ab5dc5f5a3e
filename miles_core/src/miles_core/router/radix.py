"""A radix tree from texts to the tokens that made them, with their log-probs and weight versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

TOKENS = 500_000
"""Tokens that a tree holds at most; one takes about 300 bytes."""
LAG = 5
"""Weight versions after which what was not seen again is dropped."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The fewest tokens whose text is whole: mostly one, several where a character takes several.

    Attributes:
        log_probs: one per token; zeros where they were not generated.
        generated: whether an engine made them.
        version: of the weights that did, else of the answer to the prompt that they were part of.
        routes: the experts that they were sent to, as bytes; None where nobody knows.
    """

    text: str
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    generated: bool
    version: int
    routes: bytes | None = None


@dataclass(frozen=True)
class Trace:
    """Tokens of a text, in order; one log-prob, mask (1: generated) and weight version each, and the routes of each unit.
    ``length`` characters are covered.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    mask: tuple[int, ...]
    versions: tuple[int, ...]
    routes: tuple[bytes | None, ...]
    length: int

    @classmethod
    def of(cls, units: Sequence[Unit]) -> Trace:
        """The tokens of units that follow each other."""
        return cls(
            tuple(token for unit in units for token in unit.ids),
            tuple(value for unit in units for value in unit.log_probs),
            tuple(int(unit.generated) for unit in units for _ in unit.ids),
            tuple(unit.version for unit in units for _ in unit.ids),
            tuple(unit.routes for unit in units),
            sum(len(unit.text) for unit in units),
        )


@dataclass(eq=False)
class _Node:
    units: list[Unit] = field(default_factory=list)
    children: dict[str, list[_Node]] = field(default_factory=dict)
    parent: _Node | None = None
    version: int = 0
    used: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(unit.ids) for unit in self.units)

    def adopt(self, child: _Node) -> None:
        child.parent = self
        self.children.setdefault(child.units[0].text[0], []).append(child)

    def drop(self, child: _Node) -> None:
        siblings = self.children[child.units[0].text[0]]
        siblings.remove(child)
        if not siblings:
            del self.children[child.units[0].text[0]]


class RadixTree:
    """Sequences of units by common prefixes. A node is split where sequences part, so that no prefix is held twice.

    Two tokenisations of one text are two branches: the one that an engine made is not mistaken for another. Insertion marks a whole
    path with its version and time, so that a node is never older than those below it: what is dropped, as too old or as least
    recently used, are whole subtrees.

    Args:
        limit: tokens that are held at most.
        lag: a version ``v`` drops what no answer since ``v - lag`` had.
    """

    def __init__(self, limit: int = TOKENS, lag: int = LAG) -> None:
        self.limit = limit
        self.lag = lag
        self.tokens = 0
        self.version = 0
        self._root = _Node()
        self._clock = 0

    def insert(self, units: Sequence[Unit], version: int) -> None:
        """Remember a sequence that was part of an answer with weights of ``version``."""
        self._clock += 1
        if version > self.version:
            self.version = version
            self._invalidate()
        if version <= self.version - self.lag:
            return
        node, place = self._root, 0
        while place < len(units):
            child = _matching(node, units[place])
            if child is None:
                new = _Node(list(units[place:]), version=version, used=self._clock)
                node.adopt(new)
                self.tokens += new.tokens
                break
            shared = 0
            while shared < len(child.units) and place + shared < len(units) and _same(child.units[shared], units[place + shared]):
                child.units[shared] = _newer(child.units[shared], units[place + shared])
                shared += 1
            if shared < len(child.units):
                self._split(child, shared)
            child.version, child.used = max(child.version, version), self._clock
            node, place = child, place + shared
        if self.tokens > self.limit:
            self._evict()

    def find(self, text: str) -> Trace:
        """The tokens of the longest known prefix of ``text``; of two that are as long, those used last."""
        best: tuple[int, int, list[Unit]] = (0, -1, [])
        last: _Node | None = None
        stack: list[tuple[_Node, int, list[Unit]]] = [(self._root, 0, [])]
        while stack:
            node, at, before = stack.pop()
            path = list(before)
            whole = True
            for unit in node.units:
                if not text.startswith(unit.text, at):
                    whole = False
                    break
                path.append(unit)
                at += len(unit.text)
            if (at, node.used) > best[:2]:
                best, last = (at, node.used, path), node
            if whole and at < len(text):
                stack += [(child, at, path) for child in node.children.get(text[at], ())]
        self._clock += 1
        while last is not None:
            last.used, last = self._clock, last.parent
        return Trace.of(best[2])

    def _split(self, node: _Node, at: int) -> None:
        """Make the units from ``at`` on a child."""
        lower = _Node(node.units[at:], node.children, version=node.version, used=node.used)
        for child in _each(lower.children):
            child.parent = lower
        node.units, node.children = node.units[:at], {}
        node.adopt(lower)

    def _invalidate(self) -> None:
        stack = [self._root]
        while stack:
            node = stack.pop()
            for child in list(_each(node.children)):
                if child.version <= self.version - self.lag:
                    self._remove(child)
                else:
                    stack.append(child)

    def _evict(self) -> None:
        """Drop what was not used for longest, ends of sequences first, down to nine tenths of the limit."""
        goal = self.limit * 9 // 10
        heap = [(node.used, id(node), node) for node in self._nodes() if not node.children]
        heapify(heap)
        while self.tokens > goal:
            _, _, leaf = heappop(heap)
            while len(leaf.units) > 1 and self.tokens > goal:
                self.tokens -= len(leaf.units.pop().ids)
            if self.tokens > goal:
                parent = leaf.parent
                self._remove(leaf)
                if parent is not None and parent is not self._root and not parent.children:
                    heappush(heap, (parent.used, id(parent), parent))

    def _nodes(self) -> Iterable[_Node]:
        stack = list(_each(self._root.children))
        while stack:
            node = stack.pop()
            yield node
            stack += _each(node.children)

    def _remove(self, node: _Node) -> None:
        assert node.parent is not None
        node.parent.drop(node)
        stack = [node]
        while stack:
            gone = stack.pop()
            self.tokens -= gone.tokens
            stack += _each(gone.children)


def _each(children: dict[str, list[_Node]]) -> Iterable[_Node]:
    return (child for siblings in children.values() for child in siblings)


def _same(a: Unit, b: Unit) -> bool:
    return a.ids == b.ids and a.text == b.text


def _matching(node: _Node, unit: Unit) -> _Node | None:
    return next((child for child in node.children.get(unit.text[0], ()) if _same(child.units[0], unit)), None)


def _newer(old: Unit, new: Unit) -> Unit:
    """What is known of a unit: an engine's own log-probs over none, the newest of them, and the newest routes."""
    found = new if new.generated and (not old.generated or new.version >= old.version) else old
    routes = new.routes if new.routes is not None and (old.routes is None or new.version >= old.version) else old.routes
    return found if found.routes == routes else replace(found, routes=routes)
