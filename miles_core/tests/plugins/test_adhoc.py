"""Dotted paths as plugins."""

from __future__ import annotations

import asyncio
import pickle
import textwrap
import threading

import pytest

from miles_core.config import RewardOptions, RolloutOptions
from miles_core.errors import PluginError, RunError
from miles_core.options import Config
from miles_core.plugins import create, load_adhoc
from miles_core.plugins.adapters import Arguments, as_score
from miles_core.protocols import Decision
from miles_core.samples import Invalid, Sample, Scored, Timeout

MODULE = """
    import asyncio, threading
    from dataclasses import dataclass
    from miles_core.samples import Invalid, Scored
    never = threading.Event()
    names = []

    def length(sample): return len(sample.response)
    async def alength(sample): return len(sample.response)
    async def with_args(args, sample, **kwargs): return args.rollout_temperature
    def loose(sample, strict=False): return 1
    def as_dict(sample): return {"a": 1.0}
    def as_score(sample): return Scored(2.0)
    def as_text(sample): return "1"
    def not_finite(sample): return float("nan")
    def fails(sample): raise KeyError("label")
    def exits(sample): raise SystemExit(1)
    def stops(sample): raise StopIteration
    def hangs(sample):
        if sample.index == 0: never.wait()
        return 1
    async def ahangs(sample): await asyncio.sleep(1000)
    def where(sample):
        names.append(threading.current_thread() is threading.main_thread())
        return 0
    class Grader:
        @staticmethod
        def grade(sample): return 3
        def __call__(self, sample): return 4
    instance = Grader()
    def three(a, b, c): pass
    def by_keyword(sample, *, key): pass
    def generates(sample): yield 1
    number = 5

    @dataclass
    class Output:
        keep: bool
        reason: str | None = None
    def any_reward(samples): return any(s.reward for s in samples)
    def two(args, samples): return Output(len(samples) == 2, None if len(samples) == 2 else "size")
    async def afilter(samples): return True
    def no_answer(samples): return None
    def ill(samples): raise ValueError("ill")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    import sys

    folder = tmp_path / "adhocpkg"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "functions.py").write_text(textwrap.dedent(MODULE))
    (folder / "exiting.py").write_text("raise SystemExit(0)")
    (folder / "needy.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith(("adhocpkg", "miles_adhoc_"))]:
        del sys.modules[name]


def reward(name, *groups):
    ref = pickle.loads(pickle.dumps(load_adhoc(f"adhocpkg.functions.{name}", "reward", "--custom-rm-path")))
    return create(ref, Config.of(RewardOptions(reward_timeout=0.5), *groups))


def score(made, *samples):
    async def run():
        try:
            return await made.score(samples or [Sample(response="abc")])
        finally:
            await made.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("length", 3.0),
        ("alength", 3.0),
        ("loose", 1.0),
        ("as_dict", {"a": 1.0}),
        ("as_score", 2.0),
        ("with_args", 0.25),
        ("Grader.grade", 3.0),
        ("instance", 4.0),
    ],
)
def test_reward_functions(module, name, value):
    assert score(reward(name, RolloutOptions(rollout_temperature=0.25))) == [Scored(value)]


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("fails", "KeyError: 'label' (adhocpkg/functions.py:"),
        ("exits", "SystemExit: 1"),
        ("stops", "StopIteration"),
        ("as_text", "returned str, not a number"),
        ("not_finite", "returned nan"),
    ],
)
def test_a_failure_is_invalid_and_never_zero(module, name, detail):
    (found,) = score(reward(name))
    assert isinstance(found, Invalid)
    assert detail in found.detail


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("[len(s.response) for s in samples]", [Scored(1.0), Scored(2.0)]),
        ("({'a': i} for i, s in enumerate(samples))", [Scored({"a": 0}), Scored({"a": 1})]),
        ("[1.0, 'good']", [Scored(1.0), Invalid("NAME returned str, not a number, a dict or a Score")]),
        ("[1.0]", [Invalid("NAME returned 1 scores for 2 samples")] * 2),
        ("1.0", [Invalid("NAME returned float, not a list of scores")] * 2),
        ("{'a': 1}", [Invalid("NAME returned dict, not a list of scores")] * 2),
        ("time.sleep(60)", [Timeout(0.5, "NAME")] * 2),
    ],
)
def test_a_function_of_a_whole_group(module, body, expected):
    stem = f"group_{abs(hash(body))}"
    (module / f"{stem}.py").write_text(f"import time\ndef grade(samples): return {body}\n")
    name = f"adhocpkg.{stem}.grade"
    made = create(load_adhoc(name, "reward", "--custom-rm-path"), Config.of(RewardOptions(reward_timeout=0.5, group_rm=True)))
    found = score(made, Sample(response="a"), Sample(response="ab"))
    assert found == [type(e)(**{**vars(e), "detail": e.detail.replace("NAME", name)}) for e in expected]


@pytest.mark.parametrize("name", ["hangs", "ahangs"])
def test_a_call_that_hangs_times_out(module, name):
    first, *_ = score(reward(name), Sample(index=0), Sample(index=1))
    assert isinstance(first, Timeout)
    assert first.seconds == 0.5


def test_a_hanging_thread_does_not_hold_up_the_next_sample(module):
    assert score(reward("hangs"), Sample(index=0), Sample(index=1))[1] == Scored(1.0)
    hanging = [thread for thread in threading.enumerate() if thread.name.startswith("reward adhocpkg.functions.hangs")]
    assert all(thread.daemon for thread in hanging)
    import adhocpkg.functions

    adhocpkg.functions.never.set()


def test_plain_functions_leave_the_event_loop_free(module):
    score(reward("where"))
    import adhocpkg.functions

    assert adhocpkg.functions.names == [False]


def test_scores_keep_the_order_of_samples(module):
    samples = [Sample(response="x" * n) for n in range(20)]
    assert [s.value for s in score(reward("length"), *samples)] == list(range(20))


def test_args_reads_options_by_flag_and_marks_them():
    config = Config.of(RolloutOptions(rollout_temperature=0.5))
    args = Arguments(config)
    assert args.rollout_temperature == 0.5
    assert "--rollout-temperature" in config.reads()
    assert "--rollout-top-p" not in config.reads()
    with pytest.raises(AttributeError, match="did you mean 'rollout_temperature'"):
        _ = args.rollout_temprature
    with pytest.raises(AttributeError, match="read-only"):
        args.rollout_temperature = 1.0


def test_numbers_of_other_libraries_are_numbers():
    torch = pytest.importorskip("torch")
    assert as_score(torch.tensor(0.5), "f") == Scored(0.5)
    assert isinstance(as_score(torch.ones(2), "f"), Invalid)
    assert as_score(True, "f") == Scored(1.0)


@pytest.mark.parametrize(
    ("path", "signature", "text"),
    [
        ("adhocpkg.functions.lenght", "reward", "did you mean 'length'?"),
        ("adhocpkg.functons.length", "reward", "there is no module 'adhocpkg.functons'"),
        ("nopkg.functions.length", "reward", "there is no module 'nopkg'"),
        ("length", "reward", "write package.module.function or file.py:function"),
        ("", "reward", "it is not a path"),
        ("adhocpkg.functions.number", "reward", "it is a int, not a function"),
        ("adhocpkg.functions.Grader", "reward", "it is a class, not a function"),
        ("adhocpkg.functions.three", "reward", "its signature is three(a, b, c). Do: write it as fn(sample) or fn(args, sample)"),
        ("adhocpkg.functions.by_keyword", "reward", "its signature is by_keyword(sample, *, key)"),
        ("adhocpkg.functions.generates", "reward", "it is a generator"),
        ("adhocpkg.functions.afilter", "filter", "it is async"),
        ("adhocpkg.exiting.fn", "reward", "importing adhocpkg.exiting fails with SystemExit: 0"),
        ("adhocpkg.needy.fn", "reward", "pip install what provides the module 'surely_not_installed'"),
        ("nofile.py:fn", "reward", "there is no file"),
    ],
)
def test_m111_bad_path_or_signature(module, path, signature, text):
    with pytest.raises(PluginError) as caught:
        load_adhoc(path, signature, "--custom-rm-path")
    assert caught.value.code == "M111"
    assert caught.value.exit_code == 2
    assert caught.value.line().startswith("M111 --custom-rm-path: ")
    assert text in caught.value.line()


def test_a_file_is_a_path_too(module, monkeypatch):
    monkeypatch.chdir(module)
    ref = load_adhoc("functions.py:length", "reward", "--custom-rm-path")
    monkeypatch.chdir("/")
    assert score(create(pickle.loads(pickle.dumps(ref)), Config.of())) == [Scored(3.0)]


def test_a_module_beside_the_user_is_suggested_as_a_file(module, monkeypatch):
    monkeypatch.chdir(module)
    with pytest.raises(PluginError, match=r"Do: write functions\.py:length"):
        load_adhoc("functions.length", "reward", "--custom-rm-path")


@pytest.mark.parametrize(
    ("name", "decision"),
    [("any_reward", Decision(False, "any_reward")), ("two", Decision(False, "size"))],
)
def test_filter_functions(module, name, decision):
    made = create(load_adhoc(f"adhocpkg.functions.{name}", "filter", "--dynamic-sampling-filter-path"), Config.of())
    assert made([Sample(reward=0.0)]) == decision
    assert made([Sample(reward=1.0), Sample(reward=0.0)]) == Decision(True)


@pytest.mark.parametrize("name", ["no_answer", "ill"])
def test_a_filter_without_an_answer_ends_the_run(module, name):
    made = create(load_adhoc(f"adhocpkg.functions.{name}", "filter", "--dynamic-sampling-filter-path"), Config.of())
    with pytest.raises(RunError, match="M111 the filter"):
        made([Sample()])
