"""Trying every installed plugin, each module in a process of its own, so that a hostile one hurts nobody."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from miles_core.plugins.index import Entry, PluginIndex


@dataclass(frozen=True)
class Finding:
    """What came of one plugin; ``problem`` is empty when it is well. ``flags`` are those of its options."""

    entry: Entry
    problem: str
    flags: tuple[str, ...] = ()


def examine(index: PluginIndex, *, timeout: float = 20.0) -> list[Finding]:
    """Load every plugin of the index, in processes, and say what happened.

    Args:
        index: what is installed.
        timeout: seconds that one module may take.
    """
    modules: dict[tuple[str, str], list[Entry]] = {}
    for entry in index.entries:
        modules.setdefault((entry.distribution, entry.value), []).append(entry)
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        found = pool.map(lambda entries: _probe(entries, timeout), modules.values())
        findings = {finding.entry: finding for group in found for finding in group}
    return [findings[entry] for entry in index.entries]


def shared_flags(findings: list[Finding]) -> list[str]:
    """Flags that plugins of two distributions declare: an error (M108) for whoever selects both."""
    owners: dict[str, dict[str, Entry]] = {}
    for finding in findings:
        for flag in finding.flags:
            owners.setdefault(flag, {}).setdefault(finding.entry.distribution, finding.entry)
    return [
        f"{' and '.join(e.qualified for e in who.values())} both have {flag}, and cannot be used together"
        for flag, who in sorted(owners.items())
        if len(who) > 1
    ]


def _probe(entries: list[Entry], timeout: float) -> list[Finding]:
    names = [f"{entry.kind}/{entry.qualified}" for entry in entries]
    null = subprocess.DEVNULL
    with tempfile.TemporaryDirectory(prefix="miles-doctor-") as folder:
        result = Path(folder, "result.json")
        # -P keeps the current folder off the path, where a file could pass for a plugin's module.
        command = [sys.executable, "-P", "-m", "miles_core.plugins.probe", str(result), *names]
        process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
        try:
            code = process.wait(timeout)
            ended = f"importing it ended the process with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
        except subprocess.TimeoutExpired:
            ended = f"importing it took longer than {timeout:g} s"
        finally:
            _end(process)
        said = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    return [_finding(entry, said.get(name), ended) for entry, name in zip(entries, names, strict=True)]


def _finding(entry: Entry, said: dict[str, object] | None, ended: str) -> Finding:
    if said is None:
        fix = f"report it to the author of {entry.distribution}, or pip uninstall {entry.distribution}"
        return Finding(entry, f"M103 {entry.owner}: the {entry.kind} plugin {entry.name!r} cannot be loaded: {ended}. Do: {fix}")
    flags = said["flags"]
    assert isinstance(flags, list)
    return Finding(entry, str(said["problem"]), tuple(flags))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started: they share a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
