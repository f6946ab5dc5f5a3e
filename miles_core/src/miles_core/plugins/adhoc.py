"""Ad-hoc plugins: functions that an option names by dotted path or file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miles_core.errors import PluginError
from miles_core.options import Config, options_of
from miles_core.plugins.causes import describe
from miles_core.plugins.index import closest
from miles_core.plugins.refs import PluginRef


@dataclass(frozen=True)
class Signature:
    """How a function named by an option is called.

    Attributes:
        kind: kind of plugin that the function stands in for.
        calls: the argument lists that it may have; the first that fits is used, ``args`` gives every option as an attribute.
            After a leading ``*`` the arguments are passed by name.
        is_async: whether it may be ``async def``.
        returns: what it returns, for messages.
        adapter: ``package.module:class`` of ``adapter(function, call, name, config)``, an implementation of the kind's protocol.
    """

    kind: str
    calls: tuple[tuple[str, ...], ...]
    is_async: bool
    returns: str
    adapter: str


_TIS = ("args", "pg_loss", "train_log_probs", "rollout_log_probs", "loss_masks", "total_lengths", "response_lengths")

SIGNATURES: dict[str, Signature] = {
    "filter": Signature(
        "filter",
        (("samples",), ("args", "samples")),
        False,
        "a bool (keep the group?) or a Decision",
        "miles_core.plugins.adapters:FunctionFilter",
    ),
    "reward": Signature(
        "reward",
        (("sample",), ("args", "sample")),
        True,
        "a number, a dict of numbers or a Score",
        "miles_core.plugins.adapters:FunctionReward",
    ),
    "buffer_filter": Signature(
        "function",
        (("buffer", "num_samples"), ("args", "rollout_id", "buffer", "num_samples")),
        False,
        "the groups that it removed from the buffer",
        "miles_core.rollout.hooks:BufferFilter",
    ),
    "sample_filter": Signature(
        "function",
        (("groups",), ("args", "groups")),
        False,
        "nothing: it sets remove_sample of samples",
        "miles_core.rollout.hooks:SampleFilter",
    ),
    "all_samples": Signature(
        "function",
        (("groups",), ("args", "groups", "get_samples")),
        False,
        "nothing",
        "miles_core.rollout.hooks:AllSamples",
    ),
    "reward_post_process": Signature(
        "function",
        (("samples",), ("args", "samples")),
        False,
        "(raw_rewards, rewards), one of each per sample",
        "miles_core.rollout.hooks:RewardPostProcess",
    ),
    "generate": Signature(
        "function",
        (("sample", "generate"), ("sample", "base_url"), ("args", "sample", "sampling_params")),
        True,
        "nothing: it makes the sample's response; the last form returns the sample",
        "miles_core.rollout.generate:GenerateFunction",
    ),
    "rollout_function": Signature(
        "function",
        (("rollout_id", "source", "generate"), ("args", "rollout_id", "data_source")),
        True,
        "a list of groups of graded samples",
        "miles_core.rollout.whole:RolloutFunction",
    ),
    "eval_function": Signature(
        "function",
        (("rollout_id", "sets", "generate"), ("args", "rollout_id", "data_source")),
        True,
        "metrics, or {name: {'rewards': [...]}} by evaluation set",
        "miles_core.rollout.whole:EvaluationFunction",
    ),
    "rollout_log": Signature(
        "function",
        (("rollout_id", "samples", "metrics"), ("rollout_id", "args", "samples", "rollout_extra_metrics", "rollout_time")),
        False,
        "whether core shall log no metrics of its own",
        "miles_core.rollout.log_functions:RolloutLog",
    ),
    "eval_rollout_log": Signature(
        "function",
        (("rollout_id", "data", "metrics"), ("rollout_id", "args", "data", "extra_metrics")),
        False,
        "whether core shall log no metrics of its own",
        "miles_core.rollout.log_functions:EvaluationLog",
    ),
    "convert": Signature(
        "function",
        (("samples",), ("args", "samples")),
        False,
        "a list of TrainRow, or a dict of lists",
        "miles_core.rollout.hooks:Converter",
    ),
    "middleware": Signature(
        "middleware",
        (("request", "call_next"),),
        True,
        "what call_next(request) returns, or an aiohttp response",
        "miles_core.router.adapter:FunctionMiddleware",
    ),
    "data_postprocess": Signature(
        "function",
        (("rollout_id", "rollout_data"), ("args", "rollout_id", "rollout_data")),
        False,
        "nothing: it changes rollout_data",
        "miles_core.rollout.hooks:DataPostprocess",
    ),
    "loss": Signature(
        "function",
        (
            ("inputs",),
            ("args", "batch", "logits", "sum_of_sample_mean"),
            ("args", "parallel_state", "batch", "logits", "sum_of_sample_mean"),
        ),
        False,
        "a LossOutputs or the loss of each token, or (loss, metrics) of the sum",
        "miles_core.plugins.loss_functions:FunctionLoss",
    ),
    "tis": Signature(
        "function",
        (("inputs", "pg_loss"), ("*", *_TIS), ("*", *_TIS, "parallel_state")),
        False,
        "(pg_loss, metrics), or (pg_loss, masks, metrics) when called by name",
        "miles_core.plugins.loss_functions:FunctionTis",
    ),
    "model_provider": Signature(
        "function",
        (
            ("pre_process", "post_process"),
            ("pre_process", "post_process", "vp_stage"),
            ("args", "pre_process", "post_process"),
            ("args", "pre_process", "post_process", "vp_stage"),
        ),
        False,
        "a part of the model",
        "miles_core.plugins.adapters:ModelProvider",
    ),
    "pg_loss_reducer": Signature(
        "function",
        (("mask", "lengths"), ("total_lengths", "response_lengths", "loss_masks", "calculate_per_token_loss")),
        False,
        "each token's weight, or a function that reduces the terms to a number",
        "miles_core.plugins.loss_functions:FunctionReducer",
    ),
}
"""The signatures that an option can name (``option(signature=...)``)."""


PACKAGED = {
    "calculator": "miles_core.rollout.calculator.calculator",
    "pop_first": "miles_core.rollout.buffer.pop_first",
}
"""Functions of core that go by a short name."""


def packaged(path: str) -> str:
    """The path that a function of core's short name stands for; any other path as it is."""
    return PACKAGED.get(path, path)


def load_adhoc(path: str, signature: str, flag: str) -> PluginRef:
    """Import the function that ``path`` names, check how it can be called, and return a reference for :func:`create`.

    Args:
        path: ``package.module.function``, ``package.module:function`` or ``file.py:function``.
        signature: name in :data:`SIGNATURES`.
        flag: the option that named it, for messages.

    Raises:
        PluginError: M111, the path does not lead to a function of that signature.
    """
    rule = SIGNATURES[signature]
    function, create = _resolve(path, flag)
    choose_call(function, signature, path, flag)
    return PluginRef(kind=rule.kind, name=path, distribution="", version="", create=create, adapter=signature, extra={"flag": flag})


def load_function(config: Config, group: type, field: str) -> Any:
    """The function that an option names, wrapped for the signature that the option declares; None when it names none.

    For implementations that take functions: what :func:`load_adhoc` checked before the run started is loaded in this process.

    Args:
        config: the run's options; the option counts as read.
        group, field: the option.

    Raises:
        PluginError: M111.
    """
    path = getattr(config.get(group), field)
    if path is None:
        return None
    (option,) = [each for each in options_of(group, "") if each.field == field]
    assert option.declared.signature is not None, f"{option.flag} declares no signature"
    return adapt(load_adhoc(path, option.declared.signature, option.flag), config)


def adapt(ref: PluginRef, config: Config) -> Any:
    """The object that wraps the function of ``ref`` into the protocol of its kind, in this process.

    Raises:
        PluginError: M111, this process does not find the function, or finds another.
    """
    assert ref.adapter is not None
    flag = str(ref.extra.get("flag", ref.kind))
    function, _ = _resolve(ref.create, flag)
    call = choose_call(function, ref.adapter, ref.name, flag)
    module, _, attribute = SIGNATURES[ref.adapter].adapter.partition(":")
    return getattr(importlib.import_module(module), attribute)(function, call, ref.name, config)


def choose_call(function: Callable[..., Any], signature: str, path: str, flag: str) -> tuple[str, ...]:
    """The argument list of the signature that ``function`` takes.

    Raises:
        PluginError: M111, it takes none, or is async where that cannot be.
    """
    rule = SIGNATURES[signature]
    wanted = " or ".join(f"fn({', '.join(call)})".replace("*, ", "*") for call in rule.calls)
    fix = f"write it as {wanted}, returning {rule.returns}"
    if inspect.isclass(function) or not callable(function):
        raise _bad(path, flag, f"it is a {'class' if inspect.isclass(function) else type(function).__name__}, not a function", fix)
    inner = function if inspect.isroutine(function) else getattr(type(function), "__call__", function)  # noqa: B004 - the method
    if not rule.is_async and (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inner)):
        raise _bad(path, flag, "it is async, and a plain function is needed", fix)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise _bad(path, flag, "it is a generator", fix)
    try:
        form = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise _bad(path, flag, f"its signature cannot be read: {error}", fix) from error
    # Exactly the required arguments first: fn(args, sample, **kwargs) takes two, fn(sample, strict=False) takes one. Then the name
    # decides: fn(args, rollout_id=None, buffer=None, num_samples=0) is no fn(buffer, num_samples).
    leading = next(iter(form.parameters), "") == "args"
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(p.kind in positional and p.default is p.empty for p in form.parameters.values())
    # Two forms of as many arguments are told apart by their names, and the first is taken where they are others.
    names = tuple(form.parameters)
    order = {call: (len(call) != required, (call[0] == "args") != leading, names[: len(call)] != call) for call in rule.calls}
    for call in sorted(rule.calls, key=order.__getitem__):
        try:
            form.bind(**dict.fromkeys(call[1:])) if call[0] == "*" else form.bind(*call)
        except TypeError:
            continue
        return call
    raise _bad(path, flag, f"its signature is {getattr(function, '__name__', path)}{form}", fix)


def _resolve(path: str, flag: str) -> tuple[Any, str]:
    """The object and the form of its path that any process of the run can resolve."""
    head, colon, attribute = path.rpartition(":")
    if colon and head.endswith(".py"):
        file = Path(head).expanduser().absolute()
        return _attribute(_file_module(file, path, flag), attribute, path, flag), f"{file}:{attribute}"
    module_name, attribute = (head, attribute) if colon else path.rpartition(".")[::2]
    if not module_name or not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
        raise _bad(path, flag, "it is not a path", "write package.module.function or file.py:function")
    module, rest = _import(module_name, path, flag)
    attribute = ".".join((*rest, attribute))
    return _attribute(module, attribute, path, flag), f"{module.__name__}:{attribute}"


def _import(name: str, path: str, flag: str) -> tuple[Any, list[str]]:
    """The longest importable front of ``name``, and what is left: names inside it."""
    try:
        return importlib.import_module(name), []
    except ModuleNotFoundError as error:
        front, _, last = name.rpartition(".")
        if error.name == name and front:
            parent, rest = _import(front, path, flag)
            if hasattr(parent, last):
                return parent, [*rest, last]
            near = closest(last, [*vars(parent)])
            hint = f"did you mean {front}.{near}?" if near else f"{front} has no module {last!r}"
            raise _bad(path, flag, f"there is no module {name!r}", hint) from error
        if error.name is not None and name.partition(".")[0] == error.name:
            here = Path(*name.split(".")).with_suffix(".py")
            fix = f"write {here}:{path.rpartition('.')[2]}" if here.is_file() else "check the name, or put its folder on PYTHONPATH"
            raise _bad(path, flag, f"there is no module {error.name!r}", fix) from error
        fix = f"pip install what provides the module {error.name!r}"
        raise _bad(path, flag, f"importing {name} fails with {describe(error)}", fix) from error
    except BaseException as error:
        # Foreign code runs here: SystemExit and the like must not end miles without a word.
        raise _bad(path, flag, f"importing {name} fails with {describe(error)}", "repair the module") from error


def _file_module(file: Path, path: str, flag: str) -> Any:
    if not file.is_file():
        near = closest(file.name, [other.name for other in file.parent.glob("*.py")])
        raise _bad(path, flag, f"there is no file {file}", f"did you mean {file.parent / near}?" if near else "check the path")
    # The name depends on the whole path, so that two files of one name are two modules.
    name = f"miles_adhoc_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _bad(path, flag, f"importing {file} fails with {describe(error)}", "repair the file") from error
    return module


def _attribute(module: Any, attribute: str, path: str, flag: str) -> Any:
    found = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            near = closest(part, functions)
            fix = f"did you mean {near!r}?" if near else f"it has {', '.join(sorted(functions)[:8]) or 'no functions'}"
            where = getattr(module, "__file__", None) or module.__name__
            raise _bad(path, flag, f"{Path(where).name} has no {attribute!r}", fix) from error
    return found


def _bad(path: str, flag: str, why: str, fix: str) -> PluginError:
    return PluginError("M111", f"{path!r} cannot be used", owner=flag, why=why, fix=fix, path=path, flag=flag)
