"""What miles-rewards offers, and the checks of its options. Standard library and miles_core only."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Sequence

from miles_core.config import DataOptions, PluginOptions, RewardOptions, RolloutOptions
from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.plugins import CommandRecord, RewardRecord, hookimpl
from miles_core.plugins.events import Configure
from miles_core.plugins.index import PluginIndex, closest
from miles_rewards.code.options import CodeOptions, code_errors
from miles_rewards.ifbench.options import IfbenchOptions
from miles_rewards.judge.options import JudgeOptions, judge_errors
from miles_rewards.options import FormatOptions, LengthOptions, SumOptions
from miles_rewards.parts import parse_parts
from miles_rewards.remote.options import RemoteOptions, RequestOptions, address_errors, request_errors, token_errors

DISTRIBUTION = "miles-rewards"
LABELLED = frozenset({"dapo", "deepscaler", "exact", "f1", "gpqa", "math"})
"""Rewards that need a label; so do their ``boxed_`` forms, and sums of them. ``gpqa`` may have it in its metadata."""
DICTS = frozenset({"dapo", "boxed_dapo"})
"""Rewards that answer with a dict."""


@hookimpl
def miles_reward() -> Sequence[RewardRecord]:
    return [
        RewardRecord("boxed_dapo", "miles_rewards.dapo:create_boxed", None, "dapo, of the last \\boxed{} in place of the line"),
        RewardRecord("boxed_deepscaler", "miles_rewards.deepscaler:create", None, "deepscaler, which looks into the box by itself"),
        RewardRecord(
            "boxed_deterministic_random",
            "miles_rewards.boxed:create_deterministic",
            None,
            "deterministic_random, of the last \\boxed{}",
        ),
        RewardRecord("boxed_exact", "miles_rewards.boxed:create_exact", None, "exact, of the last \\boxed{}"),
        RewardRecord("boxed_f1", "miles_rewards.boxed:create_f1", None, "f1, of the last \\boxed{}"),
        RewardRecord("boxed_gpqa", "miles_rewards.boxed:create_gpqa", None, "gpqa, of the last \\boxed{}"),
        RewardRecord(
            "boxed_ifbench", "miles_rewards.ifbench.reward:create_boxed", IfbenchOptions, "ifbench, of the last \\boxed{}"
        ),
        RewardRecord("boxed_math", "miles_rewards.mathematics.reward:create", None, "math, which looks into the box by itself"),
        RewardRecord("boxed_random", "miles_rewards.chance:create_random", None, "random, which reads no response"),
        RewardRecord(
            "boxed_remote_rm",
            "miles_rewards.remote.reward:create_boxed",
            (RemoteOptions, RequestOptions),
            "remote_rm, of the last \\boxed{}",
        ),
        RewardRecord(
            "code", "miles_rewards.code.reward:create", CodeOptions, "the share of tests that the response's program passes"
        ),
        RewardRecord("dapo", "miles_rewards.dapo:create", None, "+1 when the last line Answer: equals the label, else -1 (a dict)"),
        RewardRecord(
            "deepscaler", "miles_rewards.deepscaler:create", None, "math, of what follows </think> or ###Response, else 0.0"
        ),
        RewardRecord(
            "deterministic_random", "miles_rewards.chance:create_deterministic", None, "0.0 or 1.0 by the response's content"
        ),
        RewardRecord("exact", "miles_rewards.exact:create", None, "1.0 when the whole response is the label"),
        RewardRecord("f1", "miles_rewards.f1:create", None, "words that response and label share, from 0.0 to 1.0"),
        RewardRecord(
            "format", "miles_rewards.format:create", FormatOptions, "1.0 when the response is a think block and an answer"
        ),
        RewardRecord("gpqa", "miles_rewards.gpqa:create", None, "1.0 when the right letter of a multiple choice is chosen"),
        RewardRecord(
            "ifbench",
            "miles_rewards.ifbench.reward:create",
            IfbenchOptions,
            "1.0 when every instruction of IFEval and IFBench is followed",
        ),
        RewardRecord(
            "judge", "miles_rewards.judge.reward:create", (JudgeOptions, RequestOptions), "the verdict of a language model, 0 to 1"
        ),
        RewardRecord("length", "miles_rewards.length:create", LengthOptions, "1.0 for short responses, falling to 0.0 at a limit"),
        RewardRecord(
            "math", "miles_rewards.mathematics.reward:create", None, "1.0 when the last \\boxed{} equals the label, by value"
        ),
        RewardRecord("random", "miles_rewards.chance:create_random", None, "0.0 or 1.0 by chance"),
        RewardRecord(
            "remote_rm",
            "miles_rewards.remote.reward:create",
            (RemoteOptions, RequestOptions),
            "what the server at --rm-url answers to the sample",
        ),
        RewardRecord(
            "sum",
            "miles_rewards.total:create",
            (SumOptions, FormatOptions, LengthOptions, IfbenchOptions, RemoteOptions, RequestOptions, JudgeOptions, CodeOptions),
            "several rewards, each times its weight, added up",
        ),
    ]


@hookimpl
def miles_command() -> Sequence[CommandRecord]:
    return [CommandRecord("reward", "miles_rewards.command.group:reward", None, "Score a file of responses.")]


@hookimpl
def miles_configure(event: Configure) -> None:
    """Report options that no grading could work with."""
    reward = event.config.get(RewardOptions)
    chosen = event.config.get(PluginOptions).rm_type
    if chosen is None or reward.custom_rm_path is not None:
        return
    name = _bare(chosen)
    own = {record.name for record in miles_reward()}
    if name not in own:
        return
    errors = option_errors(name, event.config)
    parts = _parts(name, event.config)
    labelled = [part for part in parts if part.removeprefix("boxed_") in LABELLED]
    if labelled and event.config.get(DataOptions).label_key is None:
        errors.append(
            UsageError(
                "M239",
                f"reward {labelled[0]} has nothing to compare with",
                owner=_owner(),
                why="--label-key is not given, so no sample has a label",
                fix="name the key of the ground truth: --label-key answer",
            )
        )
    dicts = [part for part in parts if part in DICTS]
    for flag, key in (("--reward-key", reward.reward_key), ("--eval-reward-key", reward.eval_reward_key)):
        if dicts and key not in ("score", "acc") and (key is not None or flag == "--reward-key"):
            errors.append(
                UsageError(
                    "M290",
                    f"reward {dicts[0]} answers with a dict of score, acc and pred, and {flag} names no number of it",
                    owner=_owner(),
                    why=f"it is {key}" if key else "it is not given",
                    fix=f"give {flag} score (+1 and -1) or {flag} acc (1 and 0)",
                )
            )
    if not 0 < reward.reward_timeout < math.inf:
        errors.append(
            UsageError("M238", f"--reward-timeout is {reward.reward_timeout}", owner=_owner(), fix="give seconds, more than 0")
        )
    if reward.reward_workers < 1:
        errors.append(UsageError("M238", f"--reward-workers is {reward.reward_workers}", owner=_owner(), fix="give 1 or more"))
    for error in errors:
        event.error(error)


def option_errors(name: str, config: Config) -> list[UsageError]:
    """What keeps the reward of this name, one of this package, from being made, as far as its options tell."""
    owner = _owner()
    errors = list(_sum_errors(config.get(SumOptions).sum_of)) if name == "sum" else []
    used = {part.removeprefix("boxed_") for part in _parts(name, config)}
    if "remote_rm" in used:
        remote = config.get(RemoteOptions)
        errors += address_errors(remote.rm_url, "--rm-url", owner)
        errors += token_errors(remote.rm_auth_env, "--rm-auth-env", owner)
    if "judge" in used:
        judge = config.get(JudgeOptions)
        errors += address_errors(judge.judge_url, "--judge-url", owner)
        errors += token_errors(judge.judge_key_env, "--judge-key-env", owner)
        errors += judge_errors(judge, owner)
    if used & {"remote_rm", "judge"}:
        errors += request_errors(config.get(RequestOptions), owner)
    if "length" in used:
        errors += _length_errors(config)
    if "code" in used:
        errors += code_errors(config.get(CodeOptions), owner)
    return errors


def _length_errors(config: Config) -> Iterator[UsageError]:
    options = config.get(LengthOptions)
    limit = options.length_limit
    if limit is None:
        limit = config.get(RolloutOptions).rollout_max_response_len
    if limit is None or not 0 <= options.length_free < limit:
        what = f"--length-free {options.length_free} is not below the limit" if limit is not None else "reward length has no limit"
        yield UsageError("M238", what, owner=_owner(), why=f"the limit is {limit or 'not given'}", fix="give --length-limit")


def _sum_errors(words: Sequence[str]) -> Iterator[UsageError]:
    try:
        parts = parse_parts(words)
    except ValueError as error:
        fix = "name rewards, each with a weight or none: --sum-of math format=0.2"
        yield UsageError("M291", f"--sum-of {' '.join(words)} cannot be added up", owner=_owner(), why=str(error), fix=fix)
        return
    index = PluginIndex.scan()
    names = {name for entry in index.of_kind("reward") for name in (entry.name, entry.qualified)}
    for part in parts:
        if part.name not in names:
            near = closest(part.name, names)
            fix = f"did you mean {near!r}?" if near else "see miles plugins list --kind reward"
            yield UsageError("M291", f"--sum-of names {part.name!r}, and no such reward is installed", owner=_owner(), fix=fix)


def _parts(name: str, config: Config) -> list[str]:
    words = config.get(SumOptions).sum_of if name == "sum" else [name]
    return [_bare(word.partition("=")[0]) for word in words]


def _bare(name: str) -> str:
    return name.rpartition(":")[2]


def _owner() -> str:
    return f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
