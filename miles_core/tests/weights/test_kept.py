"""Weights that are kept beside a publish, and taken from there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from miles_core.errors import RunError
from miles_core.weights import WeightPublisher, open_transport
from miles_core.weights.bucket import pack
from miles_core.weights.kept import WeightKeeper, is_kept, kept_buckets, serve_kept


def test_an_engine_that_missed_a_publish_takes_the_same_weights(bench, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    keeper = WeightKeeper(folder)
    publisher = WeightPublisher(open_transport("shared_file", tmp_path, "trainer-0"), bucket_bytes=1024)
    there, late = bench.receiver(), bench.receiver()
    for version in (1, 2):
        for tensor in bench.weights.values():
            tensor.add_(1) if tensor.dtype != torch.bool else tensor.logical_not_()
        publisher.publish(version, iter(bench.weights.items()), bench.handles(there), keeper=keeper)
    publisher.close()
    keeper._settle(0)
    assert not is_kept(folder, 1), "one version is kept"
    assert is_kept(folder, 2)
    assert len(kept_buckets(folder, 2)) > 2
    serve_kept(late, folder, 2)
    bench.assert_served(late, 2)
    assert not late.paused
    keeper.close()
    assert not folder.exists()


def test_a_publish_that_failed_leaves_the_version_before(bench, tmp_path: Path) -> None:
    keeper = WeightKeeper(tmp_path / "served")
    first, *_ = pack(iter(bench.weights.items()), 1024)
    for version, whole in ((1, True), (2, False)):
        keeper.begin(version)
        keeper.add(first)
        if whole:
            keeper.finish()
    keeper._settle(0)
    assert (is_kept(tmp_path / "served", 1), is_kept(tmp_path / "served", 2)) == (True, False)
    keeper.begin(2)
    keeper.add(first)
    keeper.finish()
    keeper._settle(0)
    assert (is_kept(tmp_path / "served", 1), is_kept(tmp_path / "served", 2)) == (False, True)


def test_a_folder_that_cannot_be_written_is_said(bench, tmp_path: Path) -> None:
    (tmp_path / "served").write_text("a file in the way", encoding="utf-8")
    keeper = WeightKeeper(tmp_path / "served")
    first, *_ = pack(iter(bench.weights.items()), 1024)
    keeper.begin(1)
    keeper.add(first)
    with pytest.raises(RunError, match="cannot keep the weights of version 1") as caught:
        keeper.begin(2)
    assert caught.value.code == "M532"
