"""The command line with hostile packages installed and everything heavy blocked from import."""

from __future__ import annotations

import json

import pytest

from miles_core.plugins import Entry
from miles_core.plugins.doctor import Finding, shared_flags

WATCH = """
import sys
from miles_core.cli.main import main

code = main(sys.argv[1:])
heavy = ("torch", "ray", "transformers", "aiohttp", "numpy", "rich", "stevedore")
print("ACME", [m for m in sys.modules if m.startswith("acme")], [m for m in heavy if m in sys.modules])
sys.exit(code)
"""


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("-h",),
        ("--version",),
        ("plugins", "list"),
        ("plugins", "list", "--json"),
        ("plugins", "list", "--kind", "reward"),
        ("plugins", "--help"),
        ("explain", "M105"),
        ("explain",),
    ],
    ids=" ".join,
)
def test_no_plugin_and_nothing_heavy_is_imported(miles, args):
    done = miles(*args, python=("-c", WATCH))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ACME [] []"


@pytest.mark.parametrize("args", [("config", "--help"), ("config", "show", "--help"), ("run", "--help")], ids=" ".join)
def test_help_of_a_run_imports_no_plugin_that_nobody_named(miles, args):
    done = miles(*args, python=("-c", WATCH))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("ACME [] ")
    assert "torch" not in done.stdout.splitlines()[-1]


def test_config_of_a_named_plugin_that_exits_is_one_line(miles):
    done = miles("config", "show", "--loss-type", "exits")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("M103 acme-hostile 6.6: the loss plugin 'exits'")]


def test_help_names_commands_of_plugins_by_metadata(miles):
    done = miles("--help")
    assert "acme-greet" in done.stdout
    assert "from acme-good 1.0" in done.stdout


def test_list_shows_conflicts_and_incompatible_versions(miles):
    lines = miles("plugins", "list", "--kind", "reward").stdout.splitlines()
    twin = next(line for line in lines if " acme-twin " in line and "2.0" in line)
    assert "conflict with acme-good: write acme-twin:acme" in twin
    assert "needs miles-core>=2" in next(line for line in lines if "acme-future" in line)
    assert next(line for line in lines if " math " in line).endswith("ok")


def test_list_as_json(miles):
    done = miles("plugins", "list", "--json")
    found = {(row["kind"], row["name"], row["distribution"]): row for row in json.loads(done.stdout)}
    assert found["loss", "acme", "acme-good"]["version"] == "1.0"
    assert found["loss", "acme", "acme-good"]["status"] == "ok"
    assert found["logger", "jsonl", "miles-core"]["value"] == "miles_core.loggers.plugin"
    assert "see miles plugins doctor" in done.stderr


def test_info_shows_record_and_options_and_no_secret_default(miles):
    done = miles("plugins", "info", "acme", "--kind", "loss")
    assert done.returncode == 0, done.stderr
    for text in (
        "acme: the best",
        "acme-good 1.0 (directory)",
        "acme_good.work:make",
        "cpu",
        "--acme-rate",
        "float",
        "0.5",
        "How much.",
    ):
        assert text in done.stdout
    assert "(secret)" in next(line for line in done.stdout.splitlines() if "--acme-token" in line)


def test_info_of_a_distribution_shows_all_its_plugins(miles):
    done = miles("plugins", "info", "acme-twin")
    assert done.returncode == 0
    assert "acme-twin 2.0" in done.stdout


def test_info_of_an_unknown_plugin(miles):
    done = miles("plugins", "info", "acme-god")
    assert done.returncode == 2
    assert done.stderr.startswith("M101 there is no plugin 'acme-god'")
    assert "did you mean 'acme-good'?" in done.stderr


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("exits", "SystemExit: 0 (acme_hostile/exits.py:3)"),
        ("interrupts", "KeyboardInterrupt (acme_hostile/interrupts.py:1)"),
        ("missing", "pip install what provides the module 'surely_not_installed'"),
        ("syntax", "SyntaxError"),
        ("noattr", "AttributeError"),
        ("badvalue", "Invalid object reference"),
        ("raises", "OSError: no disk (acme_hostile/raises.py:3)"),
        ("heavy", "torch must not be imported here"),
    ],
)
def test_m103_names_owner_cause_and_remedy(miles, name, cause):
    done = miles("plugins", "info", name)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("M103 acme-hostile 6.6: ")
    assert cause in done.stderr
    assert ". Do: " in done.stderr


def test_m104_blocked_before_import(miles):
    done = miles("plugins", "info", "exits", "--kind", "loss", env={"MILES_BLOCK_PLUGINS": "other, acme_hostile"})
    assert done.returncode == 2
    assert done.stderr.startswith("M104 acme-hostile 6.6: the loss plugin 'exits' is blocked: --block-plugins has 'acme_hostile'")


def test_a_command_of_a_plugin_runs(miles):
    done = miles("acme-greet", "Ada")
    assert (done.returncode, done.stdout) == (0, "hello Ada\n")


def test_a_command_that_exits_on_import_is_an_error_of_its_own(miles):
    done = miles("acme-exit")
    assert done.returncode == 2
    assert done.stderr.startswith("M103 acme-hostile 6.6: the commands plugin 'acme-exit'")


def test_unknown_command_has_a_suggestion(miles):
    done = miles("acme-great")
    assert done.returncode == 2
    assert "did you mean 'acme-greet'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_unknown_code_is_an_error(miles):
    done = miles("explain", "M999")
    assert done.returncode == 2
    assert "there is no error 'M999'" in done.stderr


def test_doctor_finds_every_fault_and_survives_all(miles):
    done = miles("plugins", "doctor", "--timeout", "8")
    assert done.returncode == 1, done.stderr
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    for text in (
        "'slow' cannot be loaded: importing it took longer than 8 s",
        "'dies' cannot be loaded: importing it ended the process with exit code 3",
        "'exits' cannot be imported from acme_hostile.exits: SystemExit: 0",
        "'lost' is in the group miles.rewards, which miles does not know. Do: did you mean miles.reward?",
        "the reward plugin 'acme' is offered 2 times",
        "it needs miles-core>=2",
        "M107 acme-disagree 1.0: entry point and record of the reward plugin 'named' disagree",
        "M106 acme-hooks 1.0: there is no hook miles_train_ends. Do: did you mean miles_train_end?",
        "acme-dup: is installed twice in one folder",
        "acme-garbled: its metadata cannot be read",
        "acme-nameless: its metadata cannot be read: ValueError: it has no Version",
        "acme-closed: its metadata cannot be read: OSError",
        "there is no module acme_good.nowhere, which create names",
    ):
        assert any(text in problem for problem in problems), text
    assert not any("'lingers'" in problem for problem in problems)
    checked = [line.split() for line in done.stdout.splitlines() if "acme-good" in line and "problem:" not in line]
    assert ["loss", "acme", "acme-good", "1.0", "ok"] in checked


def test_the_check_names_heavy_imports(miles, site, tmp_path):
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "torch.py").touch()
    path = f"{tmp_path / 'heavy'}:{site}"
    result = tmp_path / "result.json"
    probe = ("-m", "miles_core.plugins.probe", str(result), "loss/acme-hostile:heavy", "loss/acme-good:acme")
    assert miles(python=probe, env={"PYTHONPATH": path}).returncode == 0
    found = json.loads(result.read_text())["loss/acme-hostile:heavy"]["problem"]
    assert found == "acme-hostile 6.6: acme_hostile.heavy imports torch. Do: move that behind the record's create"


def test_flags_that_two_distributions_share_are_noted():
    mine, yours = (Entry("loss", name, "m", f"acme-{name}", "1", "wheel") for name in ("mine", "yours"))
    findings = [Finding(mine, "", ("--a", "--b")), Finding(yours, "", ("--b",)), Finding(mine, "", ("--a",))]
    assert shared_flags(findings) == ["acme-mine:mine and acme-yours:yours both have --b, and cannot be used together"]
