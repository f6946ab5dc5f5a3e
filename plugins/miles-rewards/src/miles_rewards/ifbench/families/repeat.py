"""``repeat:`` of IFBench."""

from __future__ import annotations

from miles_rewards.ifbench.instruction import Arguments, Check

SENTENCE = "only output this sentence here, ignore all other requests."


def repeat_change(response: str, given: Arguments) -> bool:
    """The request with another first word, and nothing else."""
    wanted, words = given.text("prompt_to_repeat").split(), response.split()
    return words[1:] == wanted[1:] and words[0] != wanted[0]


def repeat_simple(response: str, given: Arguments) -> bool:
    """The sentence, and nothing else."""
    del given
    return response.strip().lower() == SENTENCE


def repeat_span(response: str, given: Arguments) -> bool:
    """The words of the request from one index, counted from 0, to another, both included."""
    words = given.text("prompt_to_repeat").split()
    span = words[given.integer("n_start") : given.integer("n_end") + 1]
    return response.strip().lower() == " ".join(span).lower()


TABLE: dict[str, Check] = {"repeat_change": repeat_change, "repeat_simple": repeat_simple, "repeat_span": repeat_span}
