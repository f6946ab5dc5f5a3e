"""Evaluation sets: named by pairs on the command line, or described in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from miles_core.config import EvaluationOptions
from miles_core.errors import PluginError, UsageError
from miles_core.plugins.adhoc import load_adhoc, packaged
from miles_core.rollout.evaluation import EvaluationSet, evaluation_sets
from miles_core.runtime.checks.data import Keys, check_file
from miles_core.runtime.checks.report import Report


def check_evaluation(report: Report) -> dict[str, int]:
    """Check every evaluation set; returns the rows of each that can be used."""
    options = report.peek(EvaluationOptions)
    if options.eval_interval is None:
        return {}
    if options.eval_config is not None:
        if options.eval_prompt_data is not None:
            said, other = (report.said(EvaluationOptions, name) for name in ("eval_prompt_data", "eval_config"))
            report.warn(f"{said} is not used: {other} takes its place")
        sound = _check_document(report, options.eval_config)
    else:
        sound = _check_pairs(report, options.eval_prompt_data)
    if not sound:
        return {}
    try:
        sets = evaluation_sets(report.config.untracked())
    except UsageError as error:
        report.errors.append(error)
        return {}
    return _check_sets(report, sets, "--eval-prompt-data" if options.eval_config is None else "--eval-config")


def _check_pairs(report: Report, words: list[str] | None) -> bool:
    if not words:
        said = report.said(EvaluationOptions, "eval_interval")
        fix = "give --eval-prompt-data NAME FILE or --eval-config FILE, or leave --eval-interval out"
        report.error("M216", f"{said} has nothing to evaluate on", why="no evaluation set is given", fix=fix)
        return False
    if len(words) % 2:
        fix = "write NAME FILE [NAME FILE ...]"
        report.error("M216", "--eval-prompt-data is not a list of pairs", why=f"it has {len(words)} words", fix=fix)
        return False
    return True


def _check_document(report: Report, path: str) -> bool:
    """Whether the file has the form that :func:`evaluation_sets` reads."""
    import yaml

    def bad(why: str, fix: str, owner: str = path) -> bool:
        report.error("M216", "--eval-config cannot be used", owner=owner, why=why, fix=fix)
        return False

    form = "write datasets: [{name: NAME, path: FILE}]"
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return bad("there is no such file", "check the path")
    except (OSError, UnicodeDecodeError) as error:
        return bad(f"it cannot be read: {error}", "check the path")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        return bad(f"it is not YAML: {getattr(error, 'problem', error)}", "repair it", f"{path}:{mark.line + 1}" if mark else path)
    body = document.get("eval", document) if isinstance(document, Mapping) else None
    sets = body.get("datasets") if isinstance(body, Mapping) else None
    if isinstance(sets, Mapping) and all(isinstance(each, Mapping) for each in sets.values()):
        sets = [{**each, "name": name} for name, each in sets.items()]
    if not isinstance(body, Mapping) or not sets or not isinstance(sets, list) or not all(isinstance(s, Mapping) for s in sets):
        return bad("it has no list 'datasets' of mappings", form)
    if not isinstance(body.get("defaults") or {}, Mapping):
        return bad("'defaults' is no mapping", form)
    for number, each in enumerate(sets, 1):
        if not all(each.get(key) and isinstance(each[key], str) for key in ("name", "path")):
            return bad(f"set {number} has no name or no path", form)
    return True


def _check_sets(report: Report, sets: list[EvaluationSet], said: str) -> dict[str, int]:
    names = [each.name for each in sets]
    for name in sorted({name for name in names if names.count(name) > 1}):
        report.error("M216", f"{said} names two sets {name!r}", why="metrics are logged by name", fix="rename one")
    found = {}
    for each in sets:
        _check_own(report, each)
        keys = Keys(each.input_key, each.label_key, each.metadata_key)
        rows = check_file(report, each.path, keys, f"{said} {each.name}")
        if rows is not None:
            found[each.name] = rows
    return found


def _check_own(report: Report, each: EvaluationSet) -> None:
    """The set's own reward and function exist."""
    try:
        if each.rm_type is not None:
            report.selection.host.load("reward", each.rm_type)
        if each.custom_generate_function_path is not None:
            load_adhoc(packaged(each.custom_generate_function_path), "generate", f"custom_generate_function_path of {each.name}")
    except PluginError as error:
        report.errors.append(error)
