"""The rollout buffer's options, against everything that generates in its place."""

from __future__ import annotations

import pytest

URL = "--rollout-buffer-url http://127.0.0.1:8889"
APART = ["--rollout-num-gpus 1"]


@pytest.mark.parametrize(
    ("changes", "drop", "code", "parts"),
    [
        (["--rollout-buffer-url localhost:8889", *APART], ["--colocate"], "M346", ("localhost:8889", "give http://HOST:PORT")),
        (["--rollout-buffer-url http://h/?a=1", *APART], ["--colocate"], "M346", ("give http://HOST:PORT",)),
        (["--rollout-buffer-url http://u:geheim@h:1", *APART], ["--colocate"], "M346", ("holds a password",)),
        ([URL, "--rollout-buffer-token geheim", *APART], ["--colocate"], "M346", ("MILES_ROLLOUT_BUFFER_TOKEN",)),
        ([URL], [], "M348", ("--offload-rollout", "--no-offload-rollout")),
        ([URL, "--loop one-step", *APART], ["--colocate"], "M348", ("--loop one-step", "--loop sync")),
        ([URL, "--loss-type imitate", *APART], ["--colocate"], "M348", ("--loss-type imitate",)),
        ([URL, "--min-batch-collection-ratio 0.5", *APART], ["--colocate"], "M348", ("--use-dynamic-global-batch-size",)),
        ([URL, "--min-batch-collection-ratio 0", *APART], ["--colocate"], "M209", ("above 0 and at most 1",)),
        ([URL, "--fetch-trajectory-retry-times -2", *APART], ["--colocate"], "M209", ("-1 (no limit)",)),
    ],
)
def test_what_does_not_go_together(cli, changes: list[str], drop: list[str], code: str, parts: tuple[str, ...]) -> None:
    found = cli.errors(cli.but(*changes, drop=drop))
    lines = [line for line in found if line.startswith(code)]
    assert len(lines) == 1, found
    assert all(part in lines[0] for part in parts), lines[0]
    assert "geheim" not in "".join(found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--fetch-trajectory-retry-times 3"], "--fetch-trajectory-retry-times (argument"),
        (["--min-batch-collection-ratio 0.5"], "--min-batch-collection-ratio (argument"),
        ([URL, "--no-offload-rollout", "--partial-rollout"], "--partial-rollout (argument"),
        ([URL, "--no-offload-rollout"], "agents send rewards, and the run does not evaluate"),
    ],
)
def test_warnings(cli, changes: list[str], said: str) -> None:
    planned = cli.plan(cli.but(*changes))
    assert planned.errors == []
    assert any(said in line for line in planned.warnings), planned.warnings


def test_agents_send_rewards(cli) -> None:
    changes = [URL, "--min-batch-collection-ratio 0.5", "--use-dynamic-global-batch-size", *APART]
    planned = cli.plan(cli.but(*changes, drop=["--colocate", "--rm-type"]))
    assert planned.errors == []
    assert not any("buffer" in line or "ratio" in line for line in planned.warnings)


def test_a_token_of_the_environment_is_for_the_server_too(cli) -> None:
    planned = cli.plan(cli.valid, MILES_ROLLOUT_BUFFER_TOKEN="geheim")
    assert planned.errors == []
    assert not any("token" in line or "geheim" in line for line in planned.warnings)
