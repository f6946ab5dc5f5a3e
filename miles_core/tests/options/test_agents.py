"""Agents and the middlewares that serve them: what is refused before a run starts."""

from __future__ import annotations

import json
from pathlib import Path

CAPTURE = ("--miles-router-middleware-paths", "routing_capture")
EXPERTS = {"num_hidden_layers": 2, "num_experts": 8, "num_experts_per_tok": 2}


def test_a_capture_of_routes_needs_engines_that_note_them(cli, checkpoint: Path) -> None:
    (line,) = [line for line in cli.errors(cli.but(*CAPTURE)) if line.startswith("M352")]
    assert "--miles-router-middleware-paths" in line
    assert "--use-rollout-routing-replay" in line
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **EXPERTS}))
    arguments = cli.but("--backend routed", "--engine routed", *CAPTURE, "--use-rollout-routing-replay")
    assert not [line for line in cli.errors(arguments) if line.startswith("M352")]
    # A function of that name is not the packaged one.
    own = checkpoint.parent / "own.py"
    own.write_text("async def routing_capture(request, call_next): ...\n")
    assert cli.errors(cli.but("--miles-router-middleware-paths", f"{own}:routing_capture")) == []


def test_an_agent_is_a_generate_function(cli, checkpoint: Path) -> None:
    own = checkpoint.parent / "own.py"
    own.write_text("def agent(sample, base_url): ...\ndef other(sample): ...\n")
    assert cli.errors(cli.but("--custom-generate-function-path", f"{own}:agent")) == []
    (line,) = cli.errors(cli.but("--custom-generate-function-path", f"{own}:other"))
    assert line.startswith("M111")
    assert "fn(sample, base_url)" in line
