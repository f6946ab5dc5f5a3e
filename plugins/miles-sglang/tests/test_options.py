"""Options: every argument of the server, refusals by name, and the command line that comes out."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from miles_core.config import ClusterOptions, FaultToleranceOptions, RolloutOptions, RouterOptions
from miles_core.options import Config
from miles_core.options.option import options_of
from miles_core.options.parse import parse_arguments, split_arguments
from miles_core.options.resolve import core_options
from miles_core.options.table import FlagTable
from miles_core.plugins.events import Configure
from miles_core.protocols import EngineLaunch
from miles_sglang import arguments as reading
from miles_sglang.arguments import SNAPSHOT, dump, read_source, server_arguments
from miles_sglang.checks import check
from miles_sglang.command import arguments, base_url, environment, launcher
from miles_sglang.options import ARGUMENTS, ServerOptions, SGLangOptions
from miles_sglang.reserved import RESERVED

SOURCE = """
CHOICES = ["auto", "dummy"]
MORE = CHOICES + ["odd"]

class ServerArgs:
    model_path: A[str, Arg(help="The model.", aliases=["--model"]), NS("model")]
    load_format: A[str, Arg(help=f"How to {load}.", choices=MORE)] = "auto"
    mem: A[Optional[float], "A share. " "Of memory.", NS("schedule")] = None
    size: A[Optional[int], Arg(help="Tokens.", type_parser=human_readable_int)] = None
    mode: A[Literal["null", "prefill"], "The mode."] = "null"
    strict: A[bool, Arg(help="Strict.", action=argparse.BooleanOptionalAction)] = True
    urls: A[List[str], "Servers."] = dataclasses.field(default_factory=list)
    tokens: A[Optional[List[int]], Arg(help="Ids.", nargs="*")] = None
    gemm: A[str, Arg(help="Kernels.", cli_name="--fast-gemm")] = "auto"
    hidden: A[bool, Arg(no_cli=True)] = False
    internal: int = 3

    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--reasoning", type=str, choices=list(computed), help="Which.")
        parser.add_argument("--old", action=DeprecatedStoreTrueAction, dest="new", help="[Deprecated] Use --new.")
        parser.add_argument("--config", type=str)
"""


def configured(config):
    """Errors and warnings of the checks."""
    errors, warnings = [], []
    check(Configure(config, errors.append, warnings.append))
    return [error.line() for error in errors], warnings


def line(server=None, tp=1, routed=False, extra=None, **launch):
    options = server or ServerOptions()
    settings = EngineLaunch(**{"rank": 0, "model": Path("/models/m"), **launch})
    return arguments(options, settings, 30000, tp=tp, routed=routed, extra=extra or {})


def test_a_source_is_read_without_running_it():
    found = {each.field: each for each in read_source(SOURCE)}
    assert sorted(found) == sorted(
        ["model_path", "load_format", "mem", "size", "mode", "strict", "urls", "tokens", "gemm", "reasoning", "old"]
    )
    assert found["model_path"].flags == ("--model-path", "--model")
    assert found["load_format"].choices == ("auto", "dummy", "odd")
    assert (found["mem"].kind, found["mem"].optional, found["mem"].help) == ("float", True, "A share. Of memory.")
    assert (found["size"].kind, found["size"].human) == ("str", True)
    assert found["mode"].choices == ("null", "prefill")
    assert (found["strict"].default, found["strict"].negatable) == (True, True)
    assert (found["urls"].kind, found["urls"].default) == ("list[str]", [])
    assert found["tokens"].kind == "list[int]"
    assert found["gemm"].flags == ("--fast-gemm",)
    assert (found["reasoning"].kind, found["reasoning"].choices) == ("str", ())
    assert (found["old"].kind, found["old"].default) == ("bool", False)
    with pytest.raises(ValueError, match="no class ServerArgs"):
        read_source("x = 1")


def test_an_installed_release_is_read_once_and_kept(tmp_path, monkeypatch):
    home = tmp_path / "site" / "sglang"
    (home / "srt").mkdir(parents=True)
    (home / "__init__.py").write_text("raise SystemExit('imported')")
    source = home / "srt" / "server_args.py"
    source.write_text(SOURCE)
    meta = tmp_path / "site" / "sglang-9.9.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = server_arguments()
    assert (found.version, found.installed, len(found.entries)) == ("9.9", True, 11)
    monkeypatch.setattr(reading, "read_source", lambda text: pytest.fail("it was read again"))
    assert server_arguments() == found
    # Another SGLang than before, whose file is no Python.
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source.write_text("class ServerArgs(:")
    found = server_arguments()
    assert (found.version, found.installed) == ("0.5.17", False)


def test_the_snapshot_is_whole_and_what_its_script_writes():
    assert ARGUMENTS.version == "0.5.17"
    assert len(ARGUMENTS.entries) > 450
    assert dump(ARGUMENTS.version, ARGUMENTS.entries) == SNAPSHOT.read_text()
    assert set(RESERVED) - {each.field for each in ARGUMENTS.entries} == set()


def test_the_options_load_fast_and_without_sglang_or_torch():
    code = (
        "import time, miles_core.options, miles_core.plugins.records; start = time.perf_counter(); import miles_sglang.plugin\n"
        "took = time.perf_counter() - start; import sys\n"
        "heavy = {'torch', 'sglang', 'ray', 'transformers', 'numpy', 'aiohttp'} & set(sys.modules); print(took, *heavy)"
    )
    took, *heavy = min(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() for _ in "123")
    assert not heavy
    # 0.1 s on an idle machine.
    assert float(took) < 0.5


def test_flags_are_those_of_sglang_with_a_prefix():
    table = FlagTable([*core_options(), *options_of(SGLangOptions, "sglang"), *options_of(ServerOptions, "sglang")])
    words = "--sglang-mem-fraction-static 0.4 --sglang-context-length 8k --sglang-server-concurrency 64 --sglang-lora-paths a b"
    parsed = parse_arguments(split_arguments(f"{words} --sglang-disable-prefill-cuda-graph --sglang-max-bs 3".split()), table)
    assert {setting.option.field: setting.value for setting in parsed.settings} == {
        "mem_fraction_static": 0.4,
        "context_length": "8k",
        "server_concurrency": 64,
        "lora_paths": ["a", "b"],
        "disable_prefill_cuda_graph": True,
    }
    assert [flag for flag, _ in parsed.unknown] == ["--sglang-max-bs"]
    assert table.near_flag("--sglang-mem-fraction-statc") == "--sglang-mem-fraction-static"


def test_options_travel_to_other_processes():
    config = pickle.loads(pickle.dumps(Config.of(ServerOptions(attention_backend="triton"))))
    assert config.get(ServerOptions).attention_backend == "triton"
    assert "--sglang-attention-backend" in config.reads()


@pytest.mark.parametrize("field", sorted(RESERVED))
def test_what_miles_sets_itself_is_refused_by_name(field):
    argument = next(each for each in ARGUMENTS.entries if each.field == field)
    other = {"bool": not argument.default, "int": 7, "str": next((c for c in argument.choices if c != argument.default), "x")}
    errors, _ = configured(Config.of(ServerOptions(**{field: other[argument.kind]})))
    flag = f"--sglang-{argument.flags[0][2:]}"
    assert errors == [e for e in errors if e.startswith(f"M510 miles-sglang: {flag} ")]
    assert RESERVED[field].use in errors[0]


@pytest.mark.parametrize(
    ("server", "own", "said"),
    [
        ({"context_length": "abc"}, {}, "--sglang-context-length is 'abc'"),
        ({"mem_fraction_static": 1.5}, {}, "--sglang-mem-fraction-static is 1.5"),
        ({"enable_multimodal": False}, {}, "--no-sglang-enable-multimodal cannot be given"),
        ({"dp_size": 2}, {}, "--sglang-dp-size is 2"),
        ({"dp_size": 2, "enable_dp_attention": True}, {}, "--sglang-dp-size 2 does not divide --rollout-num-gpus-per-engine 1"),
        ({"pp_size": 2}, {}, "--sglang-pp-size is above 1"),
        ({}, {"server_concurrency": 0}, "--sglang-server-concurrency is 0"),
        ({}, {"launch_timeout": 0.0}, "--sglang-launch-timeout is 0.0"),
    ],
)
def test_values_that_cannot_work(server, own, said):
    errors, _ = configured(Config.of(ServerOptions(**server), SGLangOptions(**own)))
    assert [error for error in errors if said in error]


@pytest.mark.parametrize(
    ("prefill", "groups", "said"),
    [
        (2, [ClusterOptions(rollout_num_gpus=2)], "M523 miles-sglang: --prefill-num-servers 2 is out of range: 2 engines"),
        (0, [ClusterOptions(rollout_num_gpus=2)], "--prefill-num-servers 0 is out of range"),
        (1, [RouterOptions(use_miles_router=True)], "does not go with --use-miles-router"),
        (1, [FaultToleranceOptions(use_fault_tolerance=True)], "does not go with --use-fault-tolerance"),
        (1, [RouterOptions(miles_router_middleware_paths=["a.b"])], "does not go with --miles-router-middleware-paths"),
        (1, [ClusterOptions(rollout_external=True)], "does not go with --rollout-external"),
        (1, [ClusterOptions(rollout_num_gpus=4, rollout_num_gpus_per_engine=2)], ""),
        (None, [ClusterOptions(rollout_num_gpus_per_engine=16)], ""),
    ],
)
def test_roles_and_sizes_of_engines(prefill, groups, said):
    errors, _ = configured(Config.of(SGLangOptions(prefill_num_servers=prefill), *groups))
    assert [error for error in errors if said in error] if said else errors == []


def test_weights_of_external_servers_are_not_read():
    errors, _ = configured(Config.of(ClusterOptions(rollout_external=True), RolloutOptions(check_weight_update_equal=True)))
    assert [error[:4] for error in errors] == ["M522"]


def test_good_values_pass():
    server = ServerOptions(context_length="8Ki", mem_fraction_static=0.4, attention_backend="triton", dllm_fdfo=False)
    assert configured(Config.of(server))[0] == []


def test_a_command_line_has_what_was_given_and_what_miles_sets():
    said = line(
        ServerOptions(mem_fraction_static=0.4, lora_paths=["a", "b"], dllm_fdfo=False, schedule_policy="fcfs"), tp=4, seed=9
    )
    assert {"--tp-size=4", "--random-seed=9", "--host=127.0.0.1", "--port=30000", "--mem-fraction-static=0.4"} <= set(said)
    assert said[said.index("--lora-paths") + 1 :][:2] == ["a", "b"]
    assert {"--no-dllm-fdfo", "--skip-server-warmup"} <= set(said)
    # SGLang's own defaults are left to it.
    assert not [word for word in said if "schedule-policy" in word or "nnodes" in word]
    assert "--enable-memory-saver" not in said
    several = line(tp=16, routed=True, memory_saver=True, node_rank=1, num_nodes=2, meeting="[fd00::8]:20000")
    assert {
        "--nnodes=2",
        "--node-rank=1",
        "--dist-init-addr=[fd00::8]:20000",
        "--enable-memory-saver",
        "--enable-return-routed-experts",
    } <= set(several)


def test_half_precision_is_bfloat16_unless_the_checkpoint_says_otherwise(tmp_path):
    def dtype(config, **server):
        (tmp_path / "config.json").write_text(config)
        return [word for word in line(ServerOptions(**server), model=tmp_path) if word.startswith("--dtype")]

    assert dtype('{"dtype": "float32"}') == ["--dtype=bfloat16"]
    assert dtype('{"torch_dtype": "float16"}') == ["--dtype=float16"]
    assert dtype('{"text_config": {"dtype": "bfloat16"}}') == ["--dtype=bfloat16"]
    assert dtype('{"dtype": "float32"}', dtype="float32") == ["--dtype=float32"]


def test_the_environment_of_a_server(tmp_path):
    launch = EngineLaunch(rank=0, model=tmp_path, devices=(2, 3), memory_saver=True)
    found = environment(launch, tmp_path / "report", {"SGLANG_JIT_DEEPGEMM_PRECOMPILE": "true", "PATH": "/bin"})
    assert found["CUDA_VISIBLE_DEVICES"] == "2,3"
    # What the user's environment says stays.
    assert found["SGLANG_JIT_DEEPGEMM_PRECOMPILE"] == "true"
    assert found["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "false"
    # Graphs that can be released need a library loaded before the server's start, which is the user's to arrange.
    assert "SGLANG_MEMORY_SAVER_CUDA_GRAPH" not in found
    assert found["SGLANG_MILES_REPORT"] == str(tmp_path / "report")


def test_addresses_and_launchers():
    assert base_url("::1", 5) == "http://[::1]:5"
    assert base_url("::", 5) == "http://[::1]:5"
    assert base_url("0.0.0.0", 5) == "http://127.0.0.1:5"
    assert launcher("") == [sys.executable, "-m", "sglang.launch_server"]
    assert launcher("numactl -N 0 'my python' -m x") == ["numactl", "-N", "0", "my python", "-m", "x"]
