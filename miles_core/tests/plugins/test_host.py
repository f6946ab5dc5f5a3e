"""The plugin host, with really installed packages, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_core.errors import PluginError, RunError
from miles_core.options import Config
from miles_core.plugins import KINDS, PluginHost, PluginIndex, events
from miles_core.plugins.host import EVENTS, RECORDS, provider


@pytest.fixture
def host(on_path):
    return PluginHost()


def code_of(call, *args):
    with pytest.raises(PluginError) as caught:
        call(*args)
    error = caught.value
    assert error.exit_code == 2
    assert "\n" not in error.line()
    assert error.fix
    return error


@pytest.mark.parametrize("kind", RECORDS)
def test_every_kind_loads_by_name(host, kind):
    name = {"commands": "acme-greet", "reward": "acme-good:acme"}.get(kind, "acme")
    loaded = host.load(kind, name)
    assert isinstance(loaded.record, RECORDS[kind])
    assert loaded.ref.kind == kind
    assert (loaded.ref.distribution, loaded.ref.version) == ("acme-good", "1.0")
    assert loaded.ref.create == getattr(loaded.record, "create", "")
    assert host.load(kind, name) is loaded


def test_kinds_with_records_and_hooks_cover_all_groups():
    assert {*RECORDS, "hooks"} == set(KINDS)
    assert provider("commands") == "miles_command"


def test_a_module_shared_by_plugins_is_registered_once(host):
    host.load("loss", "acme")
    host.load("filter", "acme")
    assert len(host.manager.get_plugins()) == 1


def test_object_as_entry_point(host):
    assert host.load("reward", "object").record.create == "a:b"


def test_capabilities_and_options_travel(host):
    loaded = host.load("backend", "acme")
    assert loaded.ref.capabilities == {"cpu"}
    assert [group.__name__ for group in loaded.options] == ["AcmeOptions"]


def test_m101_suggests_and_says_how_to_install(host):
    error = code_of(host.load, "loss", "acne")
    assert error.code == "M101"
    assert "did you mean 'acme'?" in error.line()
    assert "see miles plugins list --kind loss" in error.line()
    assert "offers 'lost' under" not in error.line()


def test_m101_knows_other_kinds_and_misspelt_groups(host):
    assert "'acme-greet' is a plugin of kind commands" in code_of(host.load, "loss", "acme-greet").line()
    assert "it offers 'lost' under miles.rewards, which must be miles.reward" in code_of(host.load, "reward", "lost").line()


def test_m101_for_a_wrong_distribution(host):
    error = code_of(host.load, "loss", "acme-twin:acme")
    assert error.code == "M101"
    assert "did you mean acme-good:acme?" in error.line()


def test_m102_names_both_and_a_qualified_name_resolves_it(host):
    error = code_of(host.load, "reward", "acme")
    assert error.code == "M102"
    assert "acme-good 1.0 and acme-twin 2.0" in error.line()
    assert host.load("reward", "acme-twin:acme").ref.version == "2.0"
    assert host.load("reward", "Acme_Twin:acme").ref.version == "2.0"


def test_m102_is_resolved_by_blocking_one(on_path):
    assert PluginHost(block=["acme-good"]).load("reward", "acme").ref.distribution == "acme-twin"


def test_a_conflict_that_nobody_uses_is_none(host):
    assert host.load("loss", "acme")


def test_m103_import_failure_carries_its_cause(host):
    error = code_of(host.load, "loss", "exits")
    assert error.code == "M103"
    assert isinstance(error.__cause__, SystemExit)


@pytest.mark.parametrize(
    ("block", "allow", "blocked"),
    [
        (["acme-hostile"], [], True),
        (["Acme.Hostile"], [], True),
        (["acme-hostile:exits"], [], True),
        (["exits"], [], True),
        (["acme-good", "acme-hostile:slow"], [], False),
        ([], ["acme-good"], True),
        ([], ["acme-hostile:slow"], True),
        ([], ["exits"], True),
        ([], ["acme-hostile:exits"], False),
        (["acme-hostile"], ["acme-hostile"], True),
    ],
)
def test_m104_block_and_allow(on_path, block, allow, blocked):
    error = code_of(PluginHost(block=block, allow=allow).load, "loss", "exits")
    assert error.code == ("M104" if blocked else "M103")


def test_allow_list_leaves_core_alone(on_path):
    with pytest.raises(PluginError) as caught:
        PluginHost(block=["miles-core"]).load("logger", "jsonl")
    assert caught.value.code == "M104"
    assert PluginHost(allow=["acme-good"]).load("logger", "jsonl").ref.distribution == "miles-core"


def test_m105_is_found_before_import(host):
    error = code_of(host.load, "reward", "future")
    assert error.code == "M105"
    assert "needs miles-core>=2" in error.line()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("misspelt", "there is no hook miles_train_ends. Do: did you mean miles_train_end?"),
        ("plain", "there is no hook miles_run_stat. Do: did you mean miles_run_start?"),
        ("unmarked", "is not marked as an implementation"),
        ("keyword", "takes 'event' by keyword only"),
        ("wrong", "takes 'evnt', which the hook does not have. Do: its signature is miles_run_end(event)"),
        ("default", "gives 'event' a default"),
        ("starred", "takes *more"),
        ("coroutine", "is async"),
        ("generator", "is a generator"),
        ("wrapper", "is a wrapper"),
    ],
)
def test_m106_rejects_what_pluggy_lets_pass(host, name, text):
    error = code_of(host.load, "hooks", name)
    assert error.code == "M106"
    assert error.owner == "acme-hooks 1.0"
    assert text in error.line()
    assert not host.manager.get_plugins()


def test_a_hook_of_a_later_core_may_be_optional(host):
    assert host.load("hooks", "later").record is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("absent", "has no hook miles_reward"),
        ("named", "name the entry point 'namedd', or the record 'named'"),
        ("twice", "returned 2 records of that name"),
        ("kind", "return a sequence of RewardRecord"),
        ("create", "write it as 'package.module:attribute'"),
        ("options", "frozen dataclass"),
        ("nothing", "implements no hook"),
        ("klass", "let the entry point name a module, or an object"),
    ],
)
def test_m107_entry_point_and_record_disagree(host, name, text):
    error = code_of(host.load, "reward", name)
    assert error.code == "M107"
    assert text in error.line()


def test_observers_get_events_also_after_one_fails(host):
    host.load("hooks", "acme-watch")
    host.load("hooks", "acme-ill")
    seen = host.manager.get_plugin("acme-good=acme_good.observer").SEEN
    start = events.RunStart(Config.of(), Path("run"), 3, None)
    host.broadcast(start)
    event = events.TrainEnd(0, {"loss": 1.0})
    with pytest.raises(RunError) as caught:
        host.broadcast(event)
    assert seen == [start, event]
    assert caught.value.code == "M106"
    assert caught.value.exit_code == 1
    assert (
        "acme-good 1.0: the hook miles_train_end failed: ValueError: observer is ill (acme_good/failing.py:" in caught.value.line()
    )


def test_a_failing_observer_does_not_hide_why_the_run_ended(host):
    host.load("hooks", "acme-ill")
    error = RunError("M481", "a process died")
    host.broadcast(events.RunEnd(Path("run"), 3, error))
    assert "ill to the end" in error.__notes__[0]
    with pytest.raises(RunError, match="ill to the end"):
        host.broadcast(events.RunEnd(Path("run"), 3, None))


def test_a_failing_check_of_options_is_a_usage_error(host):
    host.load("hooks", "acme-ill")
    with pytest.raises(PluginError, match=r"M106 acme-good 1.0: the hook miles_configure failed"):
        host.broadcast(events.Configure(Config.of(), lambda error: None))


def test_provider_plugins_check_options_too(host):
    host.load("loss", "acme")
    errors = []
    host.broadcast(events.Configure(Config.of(), errors.append))
    assert [str(error) for error in errors] == ["checked by acme"]


def test_every_event_has_its_hook():
    declared = {value for value in vars(events).values() if isinstance(value, type) and value.__module__ == events.__name__}
    assert declared == set(EVENTS)


def test_stevedore_never_scans(host, monkeypatch):
    from stevedore import _cache

    def scan(*args):
        raise AssertionError("stevedore's own cache was asked")

    monkeypatch.setattr(_cache, "get_group_all", scan)
    assert host.load("engine", "acme")


def test_names_with_a_colon_are_reported():
    from miles_core.plugins.metadata import Row

    index = PluginIndex([Row("miles.loss", "a:b", "m", "dist", "1", "wheel", (), "")])
    assert index.entries == ()
    assert "illegal name" in index.problems()[0].line()
