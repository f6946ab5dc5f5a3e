"""What ``--context-parallel-size`` goes with, as far as options and ``config.json`` say. Light: nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from miles_core.config import AlgorithmOptions, CriticOptions, RolloutOptions, RoutingOptions, TeacherOptions, TrainingOptions
from miles_core.errors import UsageError
from miles_fsdp.options import FsdpOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from miles_core.options import Config

OWNER = "miles-fsdp"
FLAG = "--context-parallel-size"
MODELS = (
    ("--hf-checkpoint", RolloutOptions, "hf_checkpoint"),
    ("--ref-load", AlgorithmOptions, "ref_load"),
    ("--teacher-load", TeacherOptions, "teacher_load"),
    ("--critic-load", CriticOptions, "critic_load"),
)


def context_problems(config: Config, *, attention_chosen: bool) -> Iterator[UsageError]:
    """Every reason why the run cannot have its context-parallel size (M338).

    Args:
        config: the run's options.
        attention_chosen: whether the user set ``--attn-implementation``.
    """
    options = config.peek(FsdpOptions)
    size = options.context_parallel_size
    if size < 1:
        yield _problem(f"{FLAG} is {size}", "that many ranks share each row", "give 1 or more")
    if size <= 1:
        return
    if attention_chosen and options.attn_implementation != "sdpa":
        what = f"{FLAG} {size} contradicts --attn-implementation {options.attn_implementation}"
        yield _problem(what, "shared rows are attended to by PyTorch's own kernels", "set --attn-implementation sdpa")
    if config.peek(TrainingOptions).true_on_policy_mode:
        what = f"{FLAG} {size} contradicts --true-on-policy-mode"
        yield _problem(what, "its kernels compute whole rows on one rank, as engines do", "leave one of them out")
    routing = config.peek(RoutingOptions)
    if routing.replays:
        flag = "--use-rollout-routing-replay" if routing.use_rollout_routing_replay else "--use-routing-replay"
        what = f"{FLAG} {size} contradicts {flag}"
        yield _problem(what, "routes are recorded and replayed for whole rows", "leave one of them out")
    for flag, group, field in MODELS:
        folder = getattr(config.peek(group), field)
        heads = None if folder is None else attention_heads(Path(folder).expanduser())
        if heads is not None and heads % size:
            what = f"{FLAG} {size} does not fit {flag} {folder}"
            near = " or ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            yield _problem(what, f"it does not divide the model's {heads} attention heads", f"take {near}")


def attention_heads(folder: Path) -> int | None:
    """The query heads of a model by its ``config.json``; None when it does not say."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = {**config, **(config.get("text_config") or {})}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    heads = found.get("num_attention_heads", found.get("n_head"))
    return heads if isinstance(heads, int) and heads > 0 else None


def _problem(what: str, why: str, fix: str) -> UsageError:
    return UsageError("M338", what, owner=OWNER, why=why, fix=fix)
