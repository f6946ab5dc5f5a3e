"""An engine that spans the devices of two trainers."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from miles_core.protocols import WeightBucket
from miles_core.weights import WeightPublisher, open_bucket, open_transport
from miles_core.weights.transports.block import BlockTransport


class Engine:
    """Reads every rank's copy of a bucket."""

    name = "engine"

    def __init__(self):
        self.seen = []

    def call(self, method, *args):
        if method == "receive_weights":
            (bucket,) = args
            for handle in bucket.handle["ranks"]:
                mine = WeightBucket(bucket.version, bucket.index, bucket.transport, handle, bucket.entries, bucket.nbytes)
                with open_bucket(mine) as tensors:
                    self.seen.append({name: tensor.clone() for name, tensor in tensors})

    def wait(self, futures, timeout):
        return [None for _ in futures]


def publish_on(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    group = dist.new_group([0, 1], backend="gloo")
    weights = {f"w{i}": torch.arange(100.0) + i for i in range(6)}
    transport = BlockTransport(open_transport("shared_file", folder, f"trainer-{rank}"), group, (0, 1))
    publisher = WeightPublisher(transport, bucket_bytes=1000)
    engine = Engine()
    for version in (1, 2):
        publisher.publish(version, weights.items(), [engine] if rank == 0 else [])
    publisher.close()
    if rank == 0:
        # Three buckets of two tensors, from both ranks, twice.
        assert len(engine.seen) == 3 * 2 * 2
        for first, second in zip(engine.seen[::2], engine.seen[1::2], strict=True):
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], weights[name]) and torch.equal(second[name], weights[name]) for name in first)
    dist.destroy_process_group()


def test_an_engine_is_told_of_the_copies_of_all_ranks(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, str(port), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said


if __name__ == "__main__":
    publish_on(int(sys.argv[3]), int(sys.argv[1]), Path(sys.argv[2]))
