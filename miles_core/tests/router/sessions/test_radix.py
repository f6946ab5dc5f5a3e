"""The radix tree against a list of everything that was put into it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from miles_core.router.radix import RadixTree, Unit

TEXTS = {1: "a", 2: "a", 3: "b", 4: "ab", 5: "ba", 6: "aab"}
Path = tuple[int, ...]
paths = st.lists(st.sampled_from(sorted(TEXTS)), min_size=1, max_size=8).map(tuple)
plain = st.lists(st.sampled_from((1, 3)), min_size=1, max_size=8).map(tuple)
texts = st.lists(st.sampled_from(sorted(TEXTS.values())), max_size=9).map("".join)


def text_of(path: Path) -> str:
    return "".join(TEXTS[token] for token in path)


@dataclass
class Naive:
    """All beginnings of all sequences: what each last unit of one is known by, and which answers had it."""

    lag: int
    known: dict[Path, Unit] = field(default_factory=dict)
    seen: dict[Path, int] = field(default_factory=dict)
    version: int = 0

    def insert(self, units: list[Unit], version: int) -> None:
        self.version = max(self.version, version)
        self.known = {path: unit for path, unit in self.known.items() if self.seen[path] > self.version - self.lag}
        if version <= self.version - self.lag:
            return
        for end in range(1, len(units) + 1):
            path, unit = tuple(u.ids[0] for u in units[:end]), units[end - 1]
            old = self.known.get(path)
            if old is None or (unit.generated and (not old.generated or unit.version >= old.version)):
                self.known[path] = unit
            self.seen[path] = max(version, self.seen[path]) if old is not None else version

    def longest(self, text: str) -> set[Path]:
        fitting = {path for path in self.known if text.startswith(text_of(path))} | {()}
        most = max(len(text_of(path)) for path in fitting)
        return {path for path in fitting if len(text_of(path)) == most}


def units_of(path: Path, generated_from: int, version: int, mark: float) -> list[Unit]:
    return [
        Unit(TEXTS[t], (t,), (-mark - i if i >= generated_from else 0.0,), i >= generated_from, version) for i, t in enumerate(path)
    ]


def check_shape(tree: RadixTree) -> None:
    """What must hold of any tree: no prefix twice, no empty node, no node older than one below it, and a true count."""
    stack, tokens = [tree._root], 0
    while stack:
        node = stack.pop()
        children = [child for siblings in node.children.values() for child in siblings]
        firsts = [child.units[0].ids for child in children]
        assert len(set(firsts)) == len(firsts)
        for child in children:
            assert child.parent is node
            assert node is tree._root or (child.version <= node.version and child.used <= node.used)
            assert child.version > tree.version - tree.lag
            tokens += child.tokens
        stack += children
    assert tokens == tree.tokens <= tree.limit


Insert = st.tuples(paths, st.integers(0, 8), st.integers(0, 4))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(Insert, texts), max_size=14), texts, st.integers(1, 3))
def test_the_tree_knows_what_a_list_knows(steps, last: str, lag: int) -> None:
    tree, naive = RadixTree(lag=lag), Naive(lag)
    for mark, step in enumerate([*steps, last]):
        if isinstance(step, tuple):
            path, generated_from, version = step
            units = units_of(path, generated_from, version, 1.0 + mark)
            tree.insert(units, version)
            naive.insert(units, version)
        else:
            found = tree.find(step)
            candidates = naive.longest(step)
            assert found.ids in candidates
            known = [naive.known[found.ids[:end]] for end in range(1, len(found.ids) + 1)]
            assert found.log_probs == tuple(unit.log_probs[0] for unit in known)
            assert found.mask == tuple(int(unit.generated) for unit in known)
            assert found.versions == tuple(unit.version for unit in known)
            assert found.length == len(text_of(found.ids))
        check_shape(tree)
        assert tree.tokens == len(naive.known)


@settings(max_examples=150, deadline=None)
@given(st.lists(plain, max_size=30), st.integers(18, 30), plain)
def test_memory_is_bounded_and_what_is_used_stays(inserted, limit: int, favourite: Path) -> None:
    tree = RadixTree(limit)
    tree.insert(units_of(favourite, 0, 0, 1.0), 0)
    for path in inserted:
        # What was used last goes last: the favourite and what is new, of at most eight tokens each, always have room.
        assert tree.find(text_of(favourite)).ids == favourite
        tree.insert(units_of(path, 0, 0, 1.0), 0)
        check_shape(tree)
        assert tree.find(text_of(path)).ids == path


def test_a_sequence_beyond_the_limit_is_not_kept() -> None:
    tree = RadixTree(4)
    tree.insert(units_of((1, 3) * 4, 0, 0, 1.0), 0)
    check_shape(tree)


def test_of_two_tokenisations_the_one_used_last_is_found() -> None:
    tree = RadixTree()
    for path in ((1, 3), (4,)):
        tree.insert(units_of(path, 0, 0, 1.0), 0)
    assert tree.find("ab").ids == (4,)
    tree.insert(units_of((1, 3), 0, 0, 1.0), 0)
    assert tree.find("abb").ids == (1, 3)


def test_routes_stay_with_their_units() -> None:
    tree = RadixTree()
    plain = units_of((1, 3, 5), 1, 2, 1.0)
    with_routes = [Unit(u.text, u.ids, u.log_probs, u.generated, u.version, bytes([i])) for i, u in enumerate(plain[:2])]
    tree.insert(with_routes, 2)
    tree.insert(plain, 2)
    assert tree.find("abba").routes == (b"\0", b"\1", None)
