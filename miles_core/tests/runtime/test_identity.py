"""Where the processes of a run meet."""

from __future__ import annotations

import pytest

from miles_core.runtime.identity import free_port, host_address, meeting_address


def test_ranks_of_one_node_meet_over_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILES_HOST_IP", raising=False)
    assert meeting_address(spans_nodes=False) == "127.0.0.1"


@pytest.mark.parametrize("spans_nodes", [False, True])
def test_an_address_of_the_users(monkeypatch: pytest.MonkeyPatch, spans_nodes: bool) -> None:
    monkeypatch.setenv("MILES_HOST_IP", "127.0.0.2")
    assert host_address() == meeting_address(spans_nodes) == "127.0.0.2"
    assert 0 < free_port(meeting_address(spans_nodes)) < 65536
