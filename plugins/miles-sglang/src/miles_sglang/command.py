"""The command line and the environment of a server."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miles_core.accelerator.vendors import vendor
from miles_core.protocols import EngineLaunch
from miles_sglang.checkpoint import checkpoint_dtype
from miles_sglang.options import ARGUMENTS
from miles_sglang.reserved import RESERVED

LOADER = "miles_sglang.inside.load"
"""Takes a bucket of weights in the server's process."""
REPORTER = "miles_sglang.inside.report"
"""Writes dtypes and digests of the served weights."""
REPORT_VARIABLE = "SGLANG_MILES_REPORT"
"""Where it writes them."""
DEFAULTS = {
    # /health says whether the server answers, /health_generate whether it generates: miles asks for what it means.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
    # Other processes of the run take and free memory of the same GPUs.
    "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "false",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "false",
    # Compiling for every shape takes minutes; shapes that are used are compiled when they come.
    "SGLANG_JIT_DEEPGEMM_PRECOMPILE": "false",
}
"""Variables that a server gets unless the environment says otherwise."""


def arguments(options: Any, launch: EngineLaunch, port: int, *, tp: int, routed: bool, extra: Mapping[str, Any]) -> list[str]:
    """Arguments of ``sglang.launch_server``.

    Args:
        options: a ``ServerOptions``.
        port: to bind to.
        tp: GPUs of the engine.
        routed: whether the experts of tokens are asked for.
        extra: further arguments by field, such as the roles of prefill and decode; None leaves one out.
    """
    chosen: dict[str, Any] = {
        "model_path": str(launch.model),
        "host": launch.host,
        "port": port,
        "tp_size": tp,
        "random_seed": launch.seed,
        "skip_server_warmup": True,
        "enable_memory_saver": launch.memory_saver,
        "enable_return_routed_experts": routed,
    }
    if getattr(options, "dtype", "auto") == "auto":
        # SGLang's own choice for a checkpoint in float32 is float16, whose range is too small for training.
        chosen["dtype"] = "float16" if checkpoint_dtype(launch.model) == "float16" else "bfloat16"
    if launch.num_nodes > 1:
        chosen |= {"nnodes": launch.num_nodes, "node_rank": launch.node_rank, "dist_init_addr": launch.meeting}
    loaders = [*(getattr(options, "custom_weight_loader", None) or ()), LOADER, REPORTER]
    chosen |= {"custom_weight_loader": loaders, **extra}
    line: list[str] = []
    for each in ARGUMENTS.entries:
        value: Any = chosen[each.field] if each.field in chosen else getattr(options, each.field)
        if value is None or (each.field not in chosen and (each.field in RESERVED or value == each.default)):
            continue
        flag = each.flags[0]
        if each.kind == "bool":
            if value:
                line.append(flag)
            elif each.negatable:
                line.append(f"--no-{flag[2:]}")
        elif each.kind.startswith("list"):
            line += [flag, *map(str, value)] if value else []
        else:
            # With "=", so that a value may begin with a dash.
            line.append(f"{flag}={value}")
    return line


def launcher(command: str, *default: str) -> list[str]:
    """The words in front of the arguments: ``command``, or this Python with what ``default`` has."""
    return shlex.split(command) if command.strip() else [sys.executable, *(default or ("-m", "sglang.launch_server"))]


def environment(launch: EngineLaunch, report: Path | None, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of the server: that of this process, the engine's GPUs, and what miles prefers."""
    found = dict(os.environ if base is None else base)
    for name, value in DEFAULTS.items():
        found.setdefault(name, value)
    if launch.devices:
        found |= dict.fromkeys(vendor().visible, ",".join(map(str, launch.devices)))
    if report is not None:
        found[REPORT_VARIABLE] = str(report)
    # The server imports miles_sglang.inside, from where this process has it.
    home = str(Path(__file__).resolve().parents[1])
    if not home.endswith(("site-packages", "dist-packages")):
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [home, found.get("PYTHONPATH", "")]))
    return found


def free_port(host: str) -> int:
    """A port that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def base_url(host: str, port: int) -> str:
    """``http://host:port``, for a server that may bind to every address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def shown(command: list[str]) -> str:
    """A command as one types it."""
    return shlex.join(command)


def json_override(document: Mapping[str, Any]) -> str:
    """The value of ``--json-model-override-args``."""
    return json.dumps(document, separators=(",", ":"))
