"""The command line of ``miles reward score``."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from miles_core.cli.help import section
from miles_core.config import PluginOptions, RewardOptions, RolloutOptions
from miles_core.errors import MilesError, PluginError, UsageError, UsageErrors
from miles_core.options import Config, Option, Source, Value, option, options_of
from miles_core.options.parse import Parsed, parse_arguments, split_arguments
from miles_core.options.sources import parse_environment
from miles_core.options.table import FlagTable
from miles_core.plugins import PluginHost
from miles_core.plugins.adhoc import load_adhoc
from miles_core.plugins.host import LoadedPlugin
from miles_core.plugins.refs import PluginRef

OWNER = "miles reward score"
USED = {
    PluginOptions: ("rm_type", "block_plugins", "allow_plugins"),
    RewardOptions: ("custom_rm_path", "reward_key"),
    RolloutOptions: ("rollout_seed",),
}
"""Options of a run that mean something without one."""


@dataclass(frozen=True)
class ScoreOptions:
    """This command"""

    help: bool = option(
        False, flag="--help", aliases=("-h",), help="Show the options, with those of the reward that --rm-type names."
    )
    input: str | None = option(
        None,
        flag="--input",
        metavar="FILE",
        help='JSON lines with "response", "label", and where the reward wants them "metadata" and "prompt"; - is standard input.',
    )
    output: str | None = option(
        None,
        flag="--output",
        metavar="FILE",
        help='JSON lines with "score", "status" (ok, invalid, timeout) and "detail", in the same order; - is standard output.',
    )
    workers: int | None = option(
        None, flag="--workers", help="Processes that grade in parallel; as many as processors when not given."
    )
    timeout: float = option(10.0, flag="--timeout", help="Seconds that grading one response may take.")


@dataclass(frozen=True)
class Job:
    """What the command line asks for.

    Attributes:
        own: options of this command.
        config: for the reward.
        reward: the reward; None when only help is asked for.
        warnings: one line each.
        help: the text of the help.
    """

    own: ScoreOptions
    config: Config
    reward: PluginRef | None
    warnings: tuple[str, ...]
    help: str


def read_job(arguments: Sequence[str], environment: Mapping[str, str], width: int = 100) -> Job:
    """Resolve the command line; ``MILES_*`` variables count as they do in a run.

    Raises:
        UsageErrors: every mistake together: M298 and the codes of a run's command line.
    """
    shared = [each for group, fields in USED.items() for each in options_of(group, "core") if each.field in fields]
    options = [*options_of(ScoreOptions, "core"), *shared]
    errors: list[MilesError] = []
    loaded, reward = _load(_config(options, _parse(arguments, environment, options)), errors)
    if loaded is not None:
        options += [each for group in loaded.options for each in options_of(group, loaded.ref.name)]
    sources = _parse(arguments, environment, options)
    config = _config(options, sources)
    own = config.peek(ScoreOptions)
    workers = _processors() if own.workers is None else own.workers
    config = config.replaced(RewardOptions, reward_workers=workers, reward_timeout=own.timeout)
    for source in sources:
        errors += source.errors
    errors += _unknown(sources[-1], FlagTable(options), reward is None)
    if not own.help:
        errors += _mistakes(own, reward is None and not errors, workers)
        errors += _reward_errors(loaded, config)
        if errors:
            raise UsageErrors(errors)
    return Job(own, config, reward, tuple(sources[0].warnings), _help(options, loaded, width))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parse(arguments: Sequence[str], environment: Mapping[str, str], options: Sequence[Option]) -> list[Parsed]:
    """The environment, then the arguments. A variable of this command's own options is none: --input belongs to one call."""
    shared = FlagTable([each for each in options if each.group is not ScoreOptions])
    return [parse_environment(environment, shared), parse_arguments(split_arguments(arguments), FlagTable(options))]


def _config(options: Iterable[Option], sources: Sequence[Parsed]) -> Config:
    given = {(s.option.group, s.option.field): s for source in sources for s in source.settings}
    pairs = []
    for each in options:
        setting = given.get((each.group, each.field))
        value = Value(setting.value, setting.source, setting.place) if setting else Value(each.default, Source.DEFAULT, "")
        pairs.append((each, value))
    return Config(pairs)


def _load(config: Config, errors: list[MilesError]) -> tuple[LoadedPlugin | None, PluginRef | None]:
    chosen, path = config.peek(PluginOptions), config.peek(RewardOptions).custom_rm_path
    try:
        if path is not None:
            return None, load_adhoc(path, "reward", "--custom-rm-path")
        if chosen.rm_type is None:
            return None, None
        loaded = PluginHost(block=chosen.block_plugins, allow=chosen.allow_plugins).load("reward", chosen.rm_type)
    except PluginError as error:
        errors.append(error)
        return None, None
    return loaded, loaded.ref


def _unknown(parsed: Parsed, table: FlagTable, unloaded: bool) -> list[UsageError]:
    errors = []
    for name, place in parsed.unknown:
        near = table.near_flag(name)
        why = "no reward is chosen, so there are no options of one" if unloaded else ""
        fix = f"did you mean {near}?" if near else f"see {OWNER} --help"
        errors.append(UsageError("M201", f"there is no option {name}", owner=place, why=why, fix=fix, name=name))
    return errors


def _mistakes(own: ScoreOptions, no_reward: bool, workers: int) -> Iterator[UsageError]:
    if no_reward:
        fix = "give --rm-type math, another of miles plugins list --kind reward, or --custom-rm-path"
        yield UsageError("M298", "no reward is named", owner=OWNER, fix=fix)
    for flag, path in (("--input", own.input), ("--output", own.output)):
        if not path:
            yield UsageError("M298", f"{flag} is not given", owner=OWNER, fix=f"give {flag} FILE, or {flag} -")
    if own.input and own.input != "-" and not os.path.isfile(own.input):
        yield UsageError("M298", f"--input {own.input} is no file", owner=OWNER, fix="check the path")
    if own.output and own.output != "-":
        folder = os.path.dirname(own.output) or "."
        if not os.path.isdir(folder) or os.path.isdir(own.output):
            fix = f"make the folder {folder}, or name a file in one that there is"
            yield UsageError("M298", f"--output {own.output} cannot be a file", owner=OWNER, fix=fix)
    if workers < 1:
        yield UsageError("M298", f"--workers is {workers}", owner=OWNER, fix="give 1 or more")
    if not 0 < own.timeout < math.inf:
        yield UsageError("M298", f"--timeout is {own.timeout}", owner=OWNER, fix="give seconds, more than 0")


def _reward_errors(loaded: LoadedPlugin | None, config: Config) -> list[UsageError]:
    from miles_rewards import plugin

    if loaded is None or loaded.ref.distribution != plugin.DISTRIBUTION:
        return []
    return plugin.option_errors(loaded.ref.name, config.untracked())


def _help(options: Sequence[Option], loaded: LoadedPlugin | None, width: int) -> str:
    shared = [each for each in options if each.group in USED]
    own = [each for each in options if each.group not in USED and each.group is not ScoreOptions]
    summary = "Grade responses with a reward, without a run. What cannot be graded has the status invalid or timeout, and no score."
    parts = [
        "Usage: miles reward score --rm-type NAME --input FILE --output FILE [OPTION ...]",
        textwrap.fill(summary, width),
        section("This command", options_of(ScoreOptions, "core"), width),
        section("Rewards", shared, width),
    ]
    if loaded is not None and own:
        parts.append(section(f"Reward {loaded.ref.name} ({loaded.entry.owner})", own, width))
    return "\n\n".join(parts)
