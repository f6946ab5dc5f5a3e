"""The text-to-token cache of ``--use-miles-router``: texts that engines made turn back into the very tokens."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from miles_core.config import RolloutOptions
from miles_core.options import Config
from miles_core.router.exchange import exchange_of
from miles_core.router.pool import as_version
from miles_core.router.radix import RadixTree, Unit

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

WINDOW = 16
"""Tokens in front of a piece that are decoded with it, as a tokeniser's text of one depends on its neighbours."""
LONGEST = 8
"""Tokens that a character takes at most."""
TEXTS = 500_000
"""Texts of tokens that are remembered."""
PARTIAL = "�"
"""What a part of a character decodes to."""


class TextCache:
    """The middleware.

    ``POST /generate`` may give ``text`` in place of ``input_ids``: what is known of it becomes the tokens that it was made of, the
    rest is tokenised without special tokens. Prompts given as ids are passed on as they are. Every answer is remembered.
    ``POST /retrieve_from_text`` with ``{"text": ...}`` answers with ``tokens``, and of each its ``rollout_logp``, ``loss_mask`` (1:
    an engine made it) and ``weight_versions``; what is not known has mask 0, log-prob 0 and version -1.

    Args:
        tokenizer: of the model that the engines serve; texts have its special tokens in them.
    """

    def __init__(self, tokenizer: Any, tree: RadixTree | None = None) -> None:
        self._tokenizer = tokenizer
        self.tree = tree or RadixTree()
        self._texts: dict[tuple[int, ...], str] = {}
        self._asked = False
        self._noted: deque[tuple[Sequence[int], Sequence[Sequence[Any]], int]] = deque()
        self._waiting = 0
        self._anchor: tuple[int, ...] = tuple(tokenizer.encode("a", add_special_tokens=False)[-1:])

    async def __call__(
        self, request: web.Request, call_next: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """See :class:`miles_core.protocols.RouterMiddleware`."""
        if request.method != "POST" or request.path not in ("/generate", "/retrieve_from_text"):
            return await call_next(request)
        exchange = exchange_of(request)
        document = await exchange.document()
        if request.path == "/retrieve_from_text":
            return self._retrieve(document)
        if document.get("input_ids") is None:
            text = document.pop("text", None)
            texts = [text] if isinstance(text, str) else text
            if not isinstance(texts, list) or not texts or not all(isinstance(each, str) and each for each in texts):
                raise ValueError("give input_ids, or text that is not empty, or a list of either")
            found = [self.tokens(each)[0] for each in texts]
            document["input_ids"] = found[0] if isinstance(text, str) else found
            exchange.replace(document)
        ids = document["input_ids"]
        prompts = ids if ids and isinstance(ids, list) and isinstance(ids[0], list) else [ids]

        def remember(index: int, answer: dict[str, Any]) -> None:
            try:
                self.note(prompts[index], answer)
            except (KeyError, TypeError, ValueError, IndexError):
                log.exception("an answer cannot be remembered")

        exchange.answered.append(remember)
        return await call_next(request)

    def tokens(self, text: str) -> tuple[list[int], list[float], list[int], list[int]]:
        """Ids, log-probs, mask and versions of a text."""
        self._asked = True
        while self._noted:
            self.remember(*self._noted.popleft())
        trace = self.tree.find(text)
        rest = text[trace.length :]
        more = self._tokenizer.encode(rest, add_special_tokens=False) if rest else []
        none = len(more)
        return (
            [*trace.ids, *more],
            [*trace.log_probs, *[0.0] * none],
            [*trace.mask, *[0] * none],
            [*trace.versions, *[-1] * none],
        )

    def note(self, prompt: Sequence[int], answer: dict[str, Any]) -> None:
        """Remember a prompt and its response; as they are, for as long as nobody has come with a text: many runs have only ids."""
        meta = answer["meta_info"]
        pairs = meta.get("output_token_logprobs") or []
        version = as_version(meta.get("weight_version")) or 0
        if self._asked:
            self.remember(prompt, pairs, version)
            return
        self._noted.append((prompt, pairs, version))
        self._waiting += len(prompt) + len(pairs)
        while self._waiting > self.tree.limit:
            first, second, _ = self._noted.popleft()
            self._waiting -= len(first) + len(second)

    def remember(self, prompt: Sequence[int], pairs: Sequence[Sequence[Any]], version: int) -> None:
        """Put a prompt and its response into the tree.

        Args:
            pairs: log-prob and id of every token of the response, as engines tell them.
            version: of the weights that made it.
        """
        ids = [*prompt, *(pair[1] for pair in pairs)]
        log_probs = [*[0.0] * len(prompt), *(pair[0] for pair in pairs)]
        units, at = [], 0
        for text, count in self._pieces(ids, len(prompt)):
            end = at + count
            units.append(Unit(text, tuple(ids[at:end]), tuple(log_probs[at:end]), at >= len(prompt), version))
            at = end
        self.tree.insert(units, version)

    def _retrieve(self, document: dict[str, Any]) -> web.Response:
        from aiohttp import web

        text = document.get("text")
        if not isinstance(text, str):
            raise ValueError("text must be a text")
        ids, log_probs, mask, versions = self.tokens(text)
        answer = {
            "response": text,
            "tokens": ids,
            "loss_mask": mask,
            "weight_versions": versions,
            "token_length": len(ids),
            "loss_mask_length": len(mask),
        }
        if document.get("return_logp", True) is not False:
            answer["rollout_logp"] = log_probs
        return web.json_response(answer)

    def _pieces(self, ids: Sequence[int], prompt: int) -> list[tuple[str, int]]:
        """The text of the fewest tokens that make whole ones, and how many those are; the prompt's do not run into the response's.

        Tokens at the end that make no whole text are left out, and so are the response's when the prompt ends so.
        """
        found = self._alone(ids)
        if found is None:
            found = self._in_context(ids)
        at = 0
        for number, (_, count) in enumerate(found):
            if at < prompt < at + count:
                return found[:number]
            at += count
        return found

    def _alone(self, ids: Sequence[int]) -> list[tuple[str, int]] | None:
        """Pieces by texts of tokens that are known; None where these do not make up the whole text."""
        found: list[tuple[str, int]] = []
        start = 0
        while start < len(ids):
            for end in range(start + 1, min(len(ids), start + LONGEST) + 1):
                text = self._known(tuple(ids[start:end])) if start else self._decode(ids[:end])
                if text and not text.endswith(PARTIAL):
                    found.append((text, end - start))
                    break
            else:
                if start + LONGEST < len(ids):
                    return None
                break
            start = end
        return found if "".join(text for text, _ in found) == self._decode(ids[:start]) else None

    def _known(self, ids: tuple[int, ...]) -> str:
        """The text of tokens behind another one, which they do not depend on in most tokenisers."""
        if ids not in self._texts:
            if len(self._texts) > TEXTS:
                self._texts.clear()
            self._texts[ids] = self._decode((*self._anchor, *ids))[len(self._decode(self._anchor)) :]
        return self._texts[ids]

    def _in_context(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """Pieces by decoding each token with those in front of it, for tokenisers whose texts depend on them."""
        found: list[tuple[str, int]] = []
        start = 0
        for end in range(1, len(ids) + 1):
            head = max(0, start - WINDOW)
            before, both = self._decode(ids[head:start]), self._decode(ids[head:end])
            piece = both[len(before) :]
            if piece and both.startswith(before) and not piece.endswith(PARTIAL):
                found.append((piece, end - start))
                start = end
        return found

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def create(config: Config) -> TextCache:
    """The middleware of a run, with its tokeniser."""
    from transformers import AutoTokenizer

    return TextCache(AutoTokenizer.from_pretrained(config.get(RolloutOptions).hf_checkpoint))
