"""Tier 0: the metadata scan and the index."""

from __future__ import annotations

import importlib_metadata
import pytest

from miles_core.errors import PluginError
from miles_core.plugins import KINDS, PluginIndex
from miles_core.plugins.index import Entry, closest
from miles_core.plugins.metadata import Row, installed, scan


def row(name="x", kind="loss", dist="dist", version="1.0", requires=()):
    return Row(f"miles.{kind}", name, "m.plugin", dist, version, "wheel", tuple(requires), "/site")


def test_scan_reads_what_pip_installed(on_path):
    rows, _ = scan()
    found = {(r.group, r.name, r.distribution): r for r in rows}
    good = found["miles.engine", "acme", "acme-good"]
    assert (good.value, good.version, good.origin) == ("acme_good.plugin", "1.0", "directory")
    assert good.requires_core == ("miles-core<1,>=0.1",)
    assert good.location == str(on_path)
    assert found["miles.logger", "console", "miles-core"].value == "miles_core.loggers.plugin"


def test_scan_reports_damage_and_goes_on(on_path):
    rows, broken = scan()
    problems = {b.distribution: b.problem for b in broken if b.distribution.startswith("acme")}
    assert set(problems) == {"acme-dup", "acme-garbled", "acme-nameless", "acme-closed"}
    assert not {"garbled", "nameless", "closed"} & {r.name for r in rows}
    # Of two copies in one folder the later version counts, whatever order the file system has.
    assert [r.name for r in rows].count("dup") == 1


def test_damage_is_named_when_somebody_asks_for_the_plugin(on_path):
    with pytest.raises(PluginError, match=r"M101 .*garbled.*miles plugins doctor"):
        PluginIndex.scan().find("filter", "acme-garbled:garbled")


def test_a_distribution_shadowed_on_the_path_does_not_count(on_path, tmp_path, monkeypatch):
    info = tmp_path / "acme_good-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.3\nName: acme-good\nVersion: 9.9\n")
    (info / "entry_points.txt").write_text("[miles.loss]\nacme = other.plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = PluginIndex.scan().find("loss", "acme")
    assert (entry.version, entry.value) == ("9.9", "other.plugin")
    assert installed("Acme.Good").version == "9.9"


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        (None, "wheel"),
        ('{"url": "file:///x", "dir_info": {"editable": true}}', "editable"),
        ('{"url": "file:///x", "dir_info": {}}', "directory"),
        ('{"url": "https://x/y", "vcs_info": {"vcs": "git", "commit_id": "1"}}', "vcs"),
        ('{"url": "https://x/y.whl", "archive_info": {}}', "archive"),
    ],
)
def test_origin(tmp_path, monkeypatch, text, origin):
    info = tmp_path / "somewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.3\nName: somewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[miles.loss]\nsomewhere = other.plugin\n")
    if text:
        (info / "direct_url.json").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert PluginIndex.scan().find("loss", "somewhere").origin == origin


def test_installed_knows_absence():
    assert installed("surely-not-there") is None
    assert installed("miles_core").version == importlib_metadata.version("miles-core")


@pytest.mark.parametrize(
    ("requires", "fits"),
    [
        ((), True),
        (("miles-core",), True),
        (("miles-core[run]>=0.1,<1",), True),
        (("miles-core>=0.1.0.dev0",), True),
        (("miles-core>=2",), False),
        (("miles-core<0.1",), False),
        (("miles-core>=2; extra == 'x'",), True),
        (("miles-core>=2; python_version >= '3'",), False),
        (("miles-core>>2",), False),
    ],
)
def test_compatibility_from_metadata(requires, fits):
    assert (Entry("loss", "x", "m", "d", "1", "wheel", requires).incompatibility() == "") is fits


def test_conflicts_within_one_distribution_are_its_authors():
    index = PluginIndex([row(), row()])
    with pytest.raises(PluginError, match=r"M102 .*tell the author of dist"):
        index.find("loss", "x")


def test_entries_are_sorted_by_kind_then_name():
    index = PluginIndex([row("b", "reward"), row("a", "reward"), row("z", "backend")])
    assert [(e.kind, e.name) for e in index.entries] == [("backend", "z"), ("reward", "a"), ("reward", "b")]


def test_problems_of_a_misspelt_group():
    index = PluginIndex([row(kind="middlewares"), row(kind="unrelatedthing")])
    near, far = (problem.line() for problem in index.problems())
    assert "did you mean miles.middleware?" in near
    assert all(f"miles.{kind}" in far for kind in KINDS)


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        ("backend", "megatron", "(pip install miles-megatron)"),
        ("backend", "zzz", "(pip install miles-megatron)"),
        ("engine", "sglang", "(pip install miles-sglang)"),
        ("loss", "zzz", "(pip install miles-algos)"),
        ("middleware", "zzz", "(pip install the distribution that has it)"),
    ],
)
def test_m101_says_what_to_install(kind, name, advice):
    with pytest.raises(PluginError) as caught:
        PluginIndex([row("fsdp", "backend", "miles-fsdp")]).find(kind, name)
    assert caught.value.code == "M101"
    assert caught.value.fix.endswith(advice)


def test_unknown_kind_is_a_programming_error():
    with pytest.raises(ValueError, match="not a kind of plugin"):
        PluginIndex([]).find("rewards", "x")


@pytest.mark.parametrize(("typed", "meant"), [("policy-loss", "policy_loss"), ("POLICY_LOSS", "policy_loss"), ("zzz", None)])
def test_closest(typed, meant):
    assert closest(typed, ["sft_loss", "policy_loss"]) == meant
