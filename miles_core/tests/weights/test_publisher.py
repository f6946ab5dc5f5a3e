"""The transaction, over every transport that runs on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from miles_core.errors import RunError
from miles_core.protocols import WeightBucket
from miles_core.weights import WeightPublisher, drain, open_transport

BUCKET = 1024


@pytest.fixture(params=["shared_file", "disk"])
def publisher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WeightPublisher]:
    made = WeightPublisher(open_transport(request.param, tmp_path, "trainer-0"), bucket_bytes=BUCKET, check_equal=True, timeout=20)
    yield made
    made.close()


def test_engines_serve_exactly_what_was_published(bench, publisher) -> None:
    receivers = [bench.receiver(), bench.receiver()]
    handles = bench.handles(*receivers)
    for version in (1, 2, 3):
        for tensor in bench.weights.values():
            tensor.add_(1) if tensor.dtype != torch.bool else tensor.logical_not_()
        report = publisher.publish(version, iter(bench.weights.items()), handles)
        for receiver in receivers:
            bench.assert_served(receiver, version)
    assert report.version == 3
    assert report.bytes == sum(t.numel() * t.element_size() for t in bench.weights.values())
    assert report.buckets > 2
    assert list(report.phases) == ["pause", "flush", "begin", "send", "commit", "check", "resume"]
    assert report.seconds >= sum(report.phases.values())
    order = [call for i, call in enumerate(receivers[0].calls) if call != "receive" or receivers[0].calls[i - 1] != "receive"]
    assert order == ["pause", "flush", "begin", "receive", "commit", "resume"] * 3


def test_engines_copy_a_bucket_while_the_next_is_filled_but_no_slot_is_overwritten(bench, publisher) -> None:
    """The first copy waits until the export is in the second bucket; then every copy waits until the export can go no further."""
    receiver = bench.receiver()
    exported: list[str] = []
    in_second_bucket = threading.Event()

    def export() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in bench.weights.items():
            exported.append(name)
            if name == "layers.3.weight":
                in_second_bucket.set()
            yield name, tensor

    def before_copy(bucket: WeightBucket) -> None:
        if bucket.index == 0:
            assert in_second_bucket.wait(10), "nothing is filled while the engine copies"

    receiver.before_copy = before_copy
    publisher.publish(1, export(), bench.handles(receiver))
    bench.assert_served(receiver, 1)


@pytest.mark.parametrize("failing", ["pause", "flush", "begin_weights", "receive_weights", "commit_weights", "weight_digests"])
def test_after_any_failure_engines_stay_closed_and_a_later_publish_heals(failing: str, bench, publisher) -> None:
    good, bad = bench.receiver(), bench.receiver()

    def fail(*_args: object) -> None:
        raise ConnectionError("the engine is gone")

    setattr(bad, failing, fail)
    with pytest.raises(RunError, match=r"M470 .*engine-1 failed .*ConnectionError: the engine is gone") as caught:
        publisher.publish(1, bench.weights.items(), bench.handles(good, bad))
    assert caught.value.data["engine"] == "engine-1"
    assert "resume" not in good.calls + bad.calls
    delattr(bad, failing)
    publisher.publish(2, bench.weights.items(), bench.handles(good, bad))
    bench.assert_served(good, 2)
    bench.assert_served(bad, 2)


def test_the_error_names_the_bucket(bench, publisher) -> None:
    receiver = bench.receiver()

    def before_copy(bucket: WeightBucket) -> None:
        if bucket.index == 1:
            raise RunError("M498", "no memory for it")

    receiver.before_copy = before_copy
    with pytest.raises(RunError, match=r"engine-0 failed taking bucket 1 of version 7: M498 no memory for it"):
        publisher.publish(7, bench.weights.items(), bench.handles(receiver))
    assert receiver.paused
    assert receiver.version == 0


def test_an_engine_that_does_not_answer_in_time_is_named(bench, tmp_path: Path) -> None:
    release = threading.Event()
    receiver = bench.receiver()
    receiver.before_copy = lambda _bucket: release.wait(20) and None
    publisher = WeightPublisher(open_transport("shared_file", tmp_path, "t"), bucket_bytes=BUCKET, timeout=0.2)
    with pytest.raises(RunError, match=r"M470 .*engine-0 failed taking bucket 0 .*no answer within 0 s"):
        publisher.publish(1, bench.weights.items(), bench.handles(receiver))
    release.set()
    publisher.close()


def test_a_trainer_that_fails_while_exporting_leaves_engines_closed(bench, publisher) -> None:
    def export() -> Iterator[tuple[str, torch.Tensor]]:
        yield from list(bench.weights.items())[:4]
        raise ArithmeticError("shard lost")

    receiver = bench.receiver()
    with pytest.raises(ArithmeticError, match="shard lost"):
        publisher.publish(1, export(), bench.handles(receiver))
    assert receiver.paused
    assert receiver.open_version == 1


def test_unequal_weights_are_found_and_named(bench, publisher) -> None:
    receiver = bench.receiver()
    digests = receiver.weight_digests

    def wrong() -> dict[str, str]:
        receiver.served["layers.2.weight"][0, 0] += 1
        found = digests()
        del found["ids"]
        return found

    receiver.weight_digests = wrong
    expected = r"M473 .*engine-0 .*2 of 11 parameters are wrong: layers.2.weight \(differs\), ids \(is not there\)"
    with pytest.raises(RunError, match=expected) as caught:
        publisher.publish(1, bench.weights.items(), bench.handles(receiver))
    assert caught.value.data["parameters"] == ("layers.2.weight", "ids")
    assert receiver.paused


def test_an_empty_export_is_an_error(bench, publisher) -> None:
    with pytest.raises(RunError, match="M474"):
        publisher.publish(1, [], bench.handles(bench.receiver()))


def test_ranks_that_send_nothing_iterate_to_the_end() -> None:
    seen = []
    drain(seen.append(i) for i in range(5))
    assert seen == list(range(5))


def test_a_bucket_must_hold_something(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        WeightPublisher(open_transport("disk", tmp_path, "t"), bucket_bytes=0)
