"""Sessions: the tokens of conversations, as the engines took and made them."""

from __future__ import annotations

import base64
import time
import uuid
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from miles_core.errors import MilesError
from miles_core.router.chat_messages import Message, same_message
from miles_core.samples import FinishReason

SESSIONS = 65_536
TOKENS = 20_000_000
"""What a store holds at most; a token takes about 20 bytes."""
IDLE = 7200.0
"""Seconds after which a session that nobody uses is dropped when there is no room."""


class FullError(Exception):
    """There is no room for another session."""


@dataclass(frozen=True)
class SessionSettings:
    """What holds for every turn of a session.

    Attributes:
        sampling: ``sampling_params`` that replace what the client asks for, such as ``temperature``.
        max_response_tokens: tokens that may follow the first prompt, those of later messages included; None for no limit.
        max_context_tokens: tokens in all; None for no limit.
        routed_experts: whether to keep the experts that the engines sent the tokens to.
        rerender: what to do when the template would write the turns so far in another way than their tokens are, as one does that
            leaves out thoughts: ``append`` keeps the tokens and appends what the new messages add; ``branch`` begins a new branch
            with the template's text.
    """

    sampling: dict[str, Any] = field(default_factory=dict)
    max_response_tokens: int | None = None
    max_context_tokens: int | None = None
    routed_experts: bool = False
    rerender: Literal["append", "branch"] = "append"

    @classmethod
    def read(cls, document: dict[str, Any]) -> SessionSettings:
        """The settings in a body of ``POST /sessions``.

        Raises:
            ValueError: a key is unknown, or its value is none that it takes.
        """
        names = {"sampling_params": "sampling"}
        unknown = set(document) - {"sampling_params", "max_response_tokens", "max_context_tokens", "routed_experts", "rerender"}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: a session has no such setting")
        for name, kinds in (("sampling_params", dict), ("routed_experts", bool)):
            if not isinstance(document.get(name, kinds()), kinds):
                raise ValueError(f"{name} must be {'an object' if kinds is dict else 'true or false'}")
        for name in ("max_response_tokens", "max_context_tokens"):
            value = document.get(name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number above 0")
        if document.get("rerender", "append") not in ("append", "branch"):
            raise ValueError("rerender must be append or branch")
        return cls(**{names.get(name, name): value for name, value in document.items()})


@dataclass(eq=False)
class Turn:
    """One request and the model's reply to it.

    Attributes:
        parent: the turn that it goes on from; None for a branch's first.
        setting: tools and options of the template, which are written in front of everything.
        said: messages of the request that follow the parent's reply.
        ids: tokens in front of the reply that follow the parent's: the prompt, for a branch's first turn.
        output, log_probs: of the reply, ``[R]``.
        versions: ``(version, tokens)`` runs of the reply.
        reply: as a message.
        rerendered: whether the template would write the turns before in another way.
        routes: int32 ``[tokens - 1, layers, top_k]`` of all tokens up to here; None when not asked for, or when a turn goes on.
        text: of ``ids`` and ``output``, control tokens included.
    """

    parent: Turn | None
    setting: str
    said: list[Message]
    ids: Sequence[int]
    output: Sequence[int]
    log_probs: Sequence[float]
    versions: tuple[tuple[int, int], ...]
    reply: Message
    finish: FinishReason
    rerendered: bool = False
    routes: bytes | None = None
    text: str = ""
    children: list[Turn] = field(default_factory=list)

    def path(self) -> list[Turn]:
        """The turns from the branch's first to this."""
        turns: list[Turn] = []
        turn: Turn | None = self
        while turn is not None:
            turns.append(turn)
            turn = turn.parent
        return turns[::-1]

    def tokens(self) -> list[int]:
        """All ids up to here."""
        return [token for turn in self.path() for ids in (turn.ids, turn.output) for token in ids]


@dataclass(frozen=True)
class Record:
    """A branch as one sequence to train on.

    Attributes:
        prompt_ids: of the first turn.
        response_ids, log_probs, loss_mask: of all that follows; 1 and its log-prob where the model made a token, else 0 and 0.0.
        weight_versions: ``(version, tokens)`` runs over the response; tokens that no model made have that of those before them.
        finish_reason: of the last turn.
        routes: see :class:`Turn`.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    log_probs: list[float]
    loss_mask: list[int]
    weight_versions: list[tuple[int, int]]
    finish_reason: FinishReason
    routes: bytes | None
    messages: list[Message]
    turns: int
    rerendered: int

    @classmethod
    def of(cls, last: Turn) -> Record:
        """The branch that ends with a turn."""
        path = last.path()
        ids: list[int] = []
        log_probs: list[float] = []
        mask: list[int] = []
        runs: list[tuple[int, int]] = []
        for turn in path:
            said = turn.ids if turn is not path[0] else ()
            ids += [*said, *turn.output]
            log_probs += [*[0.0] * len(said), *turn.log_probs]
            mask += [*[0] * len(said), *[1] * len(turn.output)]
            for version, count in ((runs[-1][0] if runs else turn.versions[0][0], len(said)), *turn.versions):
                if runs and runs[-1][0] == version:
                    runs[-1] = (version, runs[-1][1] + count)
                elif count:
                    runs.append((version, count))
        messages = [message for turn in path for message in (*turn.said, turn.reply)]
        rerendered = sum(turn.rerendered for turn in path)
        return cls(list(path[0].ids), ids, log_probs, mask, runs, last.finish, last.routes, messages, len(path), rerendered)

    def document(self) -> dict[str, Any]:
        """For ``GET /sessions/{id}``; the first four keys are those of the rollout buffer's trajectories."""
        return {
            "prompt_ids": self.prompt_ids,
            "response_ids": self.response_ids,
            "log_probs": self.log_probs,
            "loss_mask": self.loss_mask,
            "weight_version": min(version for version, _ in self.weight_versions),
            "weight_versions": [version for version, count in self.weight_versions for _ in range(count)],
            "finish_reason": str(self.finish_reason),
            "routed_experts": None if self.routes is None else base64.b64encode(self.routes).decode(),
            "messages": self.messages,
            "turns": self.turns,
            "rerendered": self.rerendered,
        }


@dataclass(eq=False)
class Session:
    """A tree of turns. Requests whose messages go on from a turn's are its children; the others begin branches of their own.

    Attributes:
        last: the turn that ended last.
        exhausted: whether a request was refused since there is no room for a token.
        failure: of the last request that failed and was not to blame.
        busy: requests that are being answered. Several at a time are branches of their own.
    """

    settings: SessionSettings
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    roots: list[Turn] = field(default_factory=list)
    last: Turn | None = None
    turns: int = 0
    tokens: int = 0
    exhausted: bool = False
    failure: MilesError | None = None
    touched: float = 0.0
    busy: int = 0

    def find(self, messages: Sequence[Message], setting: str) -> tuple[Turn | None, int]:
        """The turn that the messages go on from, the deepest and then the newest, and how many of them it and those before it have.

        None and 0 for messages that begin a branch.
        """
        best: tuple[Turn | None, int] = (None, 0)
        stack: list[tuple[Turn, int]] = [(turn, 0) for turn in self.roots]
        while stack:
            turn, at = stack.pop()
            end = at + len(turn.said)
            if turn.setting != setting or len(messages) <= end:
                continue
            pairs = zip(messages[at : end + 1], (*turn.said, turn.reply), strict=True)
            if all(same_message(given, known) for given, known in pairs):
                if end + 1 > best[1]:
                    best = (turn, end + 1)
                stack += [(child, end + 1) for child in turn.children]
        return best

    def add(self, turn: Turn) -> None:
        """Append a turn that is whole."""
        turn.ids, turn.output, turn.log_probs = array("q", turn.ids), array("q", turn.output), array("d", turn.log_probs)
        if turn.parent is None:
            self.roots.append(turn)
        else:
            turn.parent.children.append(turn)
            turn.parent.routes = None  # the child's begin with them
        self.last = turn
        self.turns += 1
        self.tokens += len(turn.ids) + len(turn.output)

    def branches(self) -> list[Turn]:
        """The last turn of every branch, in the order in which they began."""
        return list(_leaves(self.roots))

    def record(self, branch: int | None = None) -> Record:
        """A branch; the one that ended last by default.

        Raises:
            ValueError: the session has no turn, or no branch of that number.
        """
        ends = self.branches()
        if self.last is None:
            raise ValueError("the session has no turn")
        if branch is not None and not 0 <= branch < len(ends):
            raise ValueError(f"the session has {len(ends)} branches, and none of number {branch}")
        return Record.of(self.last if branch is None else ends[branch])


def _leaves(turns: Sequence[Turn]) -> Iterator[Turn]:
    stack = list(reversed(turns))
    while stack:
        turn = stack.pop()
        if not turn.children:
            yield turn
        stack += reversed(turn.children)


@dataclass
class SessionStore:
    """Sessions by id. Bounded: when it is full, those that were idle for long go, and else no new ones come.

    Args:
        most: sessions.
        most_tokens: of all of them together, when another is to come.
        idle: seconds.
        clock: seconds.
    """

    most: int = SESSIONS
    most_tokens: int = TOKENS
    idle: float = IDLE
    clock: Callable[[], float] = time.monotonic
    sessions: dict[str, Session] = field(default_factory=dict)

    def create(self, settings: SessionSettings) -> Session:
        """A new session.

        Raises:
            FullError: no room.
        """
        if self._full():
            now = self.clock()
            for each in list(self.sessions.values()):
                if not each.busy and now - each.touched > self.idle:
                    del self.sessions[each.id]
        if self._full():
            raise FullError(f"{len(self.sessions)} sessions are open; DELETE those that are done")
        session = Session(settings, touched=self.clock())
        self.sessions[session.id] = session
        return session

    def get(self, number: str) -> Session:
        """A session.

        Raises:
            KeyError: there is none of that id.
        """
        session = self.sessions[number]
        session.touched = self.clock()
        return session

    def delete(self, number: str) -> None:
        """Forget a session.

        Raises:
            KeyError: there is none of that id.
        """
        del self.sessions[number]

    def _full(self) -> bool:
        held = sum(session.tokens for session in self.sessions.values())
        return len(self.sessions) >= self.most or held >= self.most_tokens
