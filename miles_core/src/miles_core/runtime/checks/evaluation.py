"""Evaluation sets: named by pairs on the command line, or described in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miles_core.config import DataOptions, EvaluationOptions
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
        return _from_file(report, options.eval_config)
    if not options.eval_prompt_data:
        said = report.said(EvaluationOptions, "eval_interval")
        fix = "give --eval-prompt-data NAME FILE or --eval-config FILE, or leave --eval-interval out"
        report.error("M216", f"{said} has nothing to evaluate on", why="no evaluation set is given", fix=fix)
        return {}
    return _from_pairs(report, options.eval_prompt_data)


def _from_pairs(report: Report, words: list[str]) -> dict[str, int]:
    said = "--eval-prompt-data"
    if len(words) % 2:
        why = f"it has {len(words)} words"
        report.error("M216", f"{said} is not a list of pairs", why=why, fix="write NAME FILE [NAME FILE ...]")
        return {}
    sets = list(zip(words[::2], words[1::2], strict=True))
    _check_names(report, [name for name, _ in sets], said)
    data = report.peek(DataOptions)
    keys = Keys(data.input_key, data.label_key, data.metadata_key)
    counted = {name: check_file(report, file, keys, f"{said} {name}") for name, file in sets}
    return {name: rows for name, rows in counted.items() if rows is not None}


def _check_names(report: Report, names: list[str], said: str) -> None:
    for name in sorted({name for name in names if names.count(name) > 1}):
        report.error("M216", f"{said} names two sets {name!r}", why="metrics are logged by name", fix="rename one")


def _from_file(report: Report, path: str) -> dict[str, int]:
    import yaml

    def bad(why: str, fix: str, owner: str = path) -> None:
        report.error("M216", "--eval-config cannot be used", owner=owner, why=why, fix=fix)

    try:
        document = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError:
        bad("there is no such file", "check the path")
        return {}
    except (OSError, UnicodeDecodeError) as error:
        bad(f"it cannot be read: {error}", "check the path")
        return {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        bad(f"it is not YAML: {getattr(error, 'problem', error)}", "repair it", f"{path}:{mark.line + 1}" if mark else path)
        return {}
    body = document.get("eval", document) if isinstance(document, Mapping) else None
    sets = body.get("datasets") if isinstance(body, Mapping) else None
    if isinstance(sets, Mapping) and all(isinstance(each, Mapping) for each in sets.values()):
        sets = [{**each, "name": name} for name, each in sets.items()]
    if not sets or not isinstance(sets, list) or not all(isinstance(each, Mapping) for each in sets):
        bad("it has no list 'datasets' of mappings", "write datasets: [{name: NAME, path: FILE}]")
        return {}
    assert isinstance(body, Mapping)
    defaults = body.get("defaults") or {}
    missing = [i for i, each in enumerate(sets, 1) if not each.get("name") or not each.get("path")]
    if missing or not isinstance(defaults, Mapping):
        bad(
            f"set {missing[0]} has no name or no path" if missing else "'defaults' is no mapping",
            "write datasets: [{name: NAME, path: FILE}]",
        )
        return {}
    _check_names(report, [str(each["name"]) for each in sets], "--eval-config")
    return _count(report, sets, defaults)


def _count(report: Report, sets: list[Mapping[str, Any]], defaults: Mapping[str, Any]) -> dict[str, int]:
    data = report.peek(DataOptions)
    found = {}
    for each in sets:

        def of(name: str, otherwise: Any, each: Mapping[str, Any] = each) -> Any:
            return each.get(name, defaults.get(name, otherwise))

        path = str(each["path"])
        if "${" in path:
            # An interpolation is resolved where the file is read for the run.
            continue
        keys = Keys(of("input_key", data.input_key), of("label_key", data.label_key), of("metadata_key", data.metadata_key))
        rows = check_file(report, path, keys, f"--eval-config set {each['name']}")
        if rows is not None:
            found[str(each["name"])] = rows
    return found
