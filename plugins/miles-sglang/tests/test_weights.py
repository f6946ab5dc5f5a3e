"""Weights into a server: every transport, whole or not at all, and read back."""

from __future__ import annotations

import io
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler

import psutil
import pytest
import torch

from miles_core.errors import MilesError
from miles_core.protocols import EngineLaunch, TensorEntry, WeightBucket
from miles_core.weights import WeightPublisher, open_transport
from miles_core.weights.bucket import pack
from miles_core.weights.kept import WeightKeeper, serve_kept
from miles_core.weights.transports.cuda_ipc import CudaIpcSender
from miles_sglang import payload


class Handle:
    """Calls an engine in this process, one call after the other."""

    def __init__(self, name, engine):
        self.name, self._engine, self._thread = name, engine, ThreadPoolExecutor(1)

    def call(self, method, *args):
        return self._thread.submit(getattr(self._engine, method), *args)

    def wait(self, futures, timeout):
        return [future.result(timeout) for future in futures]


class FileSender(CudaIpcSender):
    """Sends handles of the form of CUDA's that stand for files: this machine has no GPU."""

    def __init__(self, folder, ranks=1):
        super().__init__(ranks)
        self._folder, self._flats = folder, {}

    def buffer(self, slot, nbytes):
        flat = self._flats[slot] = torch.empty(nbytes, dtype=torch.uint8)

        class Buffer:
            @staticmethod
            def reserve(_):
                return flat

        return Buffer()

    def stage(self, slot, bucket, receivers):
        path = self._folder / f"slot-{slot}"
        path.write_bytes(self._flats[slot].numpy().tobytes())
        arguments = (torch.Tensor, torch.Size([4]), (1,), 0, torch.UntypedStorage, torch.uint8, 0, str(path).encode(), 4, 0, False)
        packed = io.BytesIO()
        ForkingPickler(packed).dump(arguments)
        handle = {"tensor": packed.getvalue(), "device": "b8e5c1f4"}
        return [handle if self._ranks == 1 else {"ranks": [handle] * self._ranks}] * receivers

    def end(self):
        self._flats.clear()


def publish(transport, served, weights, bucket_bytes=2048, **settings):
    """Publish as the next version; returns its number."""
    version = next(_versions)
    publisher = WeightPublisher(transport, bucket_bytes=bucket_bytes, timeout=60.0, **settings)
    publisher.publish(version, weights.items(), [Handle(f"engine-{i}", each.engine) for i, each in enumerate(served)])
    return version


_versions = itertools.count(1)


def same(engine, weights):
    """Whether an engine serves weights, rounded to what it holds them in."""
    from miles_core.weights import digest

    found = engine.weight_digests()
    return all(found[name] == digest(tensor.bfloat16()) for name, tensor in weights.items())


def test_layers_that_only_draft_may_come_and_are_not_compared(served, weights, tmp_path, monkeypatch):
    ahead = {"model.mtp_layers.0.input_proj.weight": torch.ones(2, 4)}
    monkeypatch.setattr(served.engine._weights, "_names", served.engine._weights._names | ahead.keys())
    publish(FileSender(tmp_path), [served], {**weights(1), **ahead}, check_equal=True)
    assert {name for name, found in served.engine.weight_digests().items() if not found} == ahead.keys()
    publish(FileSender(tmp_path), [served], weights(2), check_equal=True)
    assert "" not in served.engine.weight_digests().values()


def test_weights_over_cuda_ipc_reach_the_fused_parameters(served, weights, tmp_path, request_of):
    version = publish(FileSender(tmp_path), [served], weights(1), check_equal=True)
    assert set(served.engine.weight_dtypes().values()) == {"bfloat16"}
    assert served.ask(request_of("a"))["a"].weight_version == version
    # The head is the embedding, whether a trainer exports it or not.
    tied = {**weights(2), "lm_head.weight": weights(2)["model.embed_tokens.weight"]}
    served.forget()
    publish(FileSender(tmp_path), [served], tied)
    assert same(served.engine, weights(2))
    paths = [path for path, _, _ in served.calls()]
    taken = paths.count("/update_weights_from_tensor") - 1  # one asks for digests
    assert taken > 3
    # The version is set once, when everything is there, and only then does the server go on.
    order = ["/pause_generation", "/flush_cache", *["/update_weights_from_tensor"] * taken, "/update_weight_version"]
    assert paths[: taken + 4] == [*order, "/continue_generation"]


def test_every_rank_of_an_engine_gets_a_handle_of_its_own(tmp_path):
    transport = FileSender(tmp_path, ranks=2)
    bucket = next(pack([("a", torch.zeros(3))], 64, transport.buffer))
    (handle,) = transport.stage(0, bucket, 1)
    sent = payload.cuda_ipc(WeightBucket(1, 0, "cuda_ipc", handle, bucket.entries, bucket.nbytes))
    assert len(sent) == 2


def test_weights_over_a_process_group_of_two_engines(two, weights, tmp_path):
    transport = open_transport("process_group", tmp_path, "trainer-0")
    for each in two:
        each.forget()
    publish(transport, two, weights(1), check_equal=True)
    publish(transport, two, weights(2), check_equal=True)
    assert all(same(each.engine, weights(2)) for each in two)
    joined = [each.calls("/init_weights_update_group") for each in two]
    # The group is made once.
    assert [len(each) for each in joined] == [1, 1]
    assert [each[0][1]["rank_offset"] for each in joined] == [1, 2]
    assert [each[0][1]["world_size"] for each in joined] == [3, 3]
    transport.close()
    again = open_transport("process_group", tmp_path, "trainer-0")
    publish(again, two, weights(3))
    assert [len(each.calls("/destroy_weights_update_group")) for each in two] == [1, 1]
    again.close()


def test_ranks_of_an_engine_are_counted_in_the_group(tmp_path):
    transport = open_transport("process_group", tmp_path, "trainer-0", ranks=4)
    transport.begin(2)
    bucket = next(pack([("a", torch.zeros(3))], 64, transport.buffer))
    first, second = transport.stage(0, bucket, 2)
    assert (first["rank_offset"], second["rank_offset"], first["world_size"]) == (1, 5, 9)
    transport.close()


def test_weights_over_disk(served, weights, tmp_path):
    transport = open_transport("disk", tmp_path, "trainer-0")
    publish(transport, [served], weights(4), check_equal=True)
    assert same(served.engine, weights(4))
    transport.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: w.pop("model.layers.0.mlp.up_proj.weight"), r"1 are missing \(model.layers.0.mlp.up_proj.weight\)"),
        (lambda w: w.update({"model.norm.scale": torch.zeros(2)}), r"1 names are not the checkpoint's \(model.norm.scale\)"),
    ],
)
def test_weights_that_are_not_whole_are_never_served(served, weights, tmp_path, change, why):
    given = weights(1)
    change(given)
    with pytest.raises(MilesError, match=f"M470.*M516.*not whole: {why}"):
        publish(FileSender(tmp_path), [served], given)
    with pytest.raises(MilesError, match=r"M515.*transaction of version \d+ is open"):
        served.engine.resume()
    assert not served.engine.serving
    publish(FileSender(tmp_path), [served], weights(1))
    assert served.engine.serving


def test_a_server_that_refuses_weights_stays_paused(serve, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE_WEIGHTS", "1")
    served = serve()
    with pytest.raises(MilesError, match=r"M470.*M513.*update_weights_from_tensor: HTTP 400: RuntimeError: not today"):
        publish(FileSender(tmp_path), [served], weights(1))
    assert not served.engine.serving


def test_a_transaction_out_of_order(served, weights, tmp_path):
    engine = served.engine
    bucket = WeightBucket(3, 0, "shared_file", {}, (TensorEntry("model.embed_tokens.weight", "float32", (1,), 0, 4),), 4)
    with pytest.raises(MilesError, match=r"M515.*while generating"):
        engine.begin_weights(3)
    engine.pause()
    with pytest.raises(MilesError, match=r"M516.*no transaction is open"):
        engine.receive_weights(bucket)
    engine.begin_weights(2)
    with pytest.raises(MilesError, match=r"M516.*version 2 is open"):
        engine.receive_weights(bucket)
    with pytest.raises(MilesError, match=r"M515.*no whole weights to compare"):
        engine.weight_digests()
    engine.begin_weights(3)
    with pytest.raises(MilesError, match=r"M515.*cannot take weights over shared_file"):
        engine.receive_weights(bucket)
    with pytest.raises(MilesError, match=r"M516.*cannot commit version 4"):
        engine.commit_weights(4)
    publish(FileSender(tmp_path), [served], weights(1))


def test_a_difference_to_the_trainer_is_found(served, weights, tmp_path):
    class Wrong(FileSender):
        def stage(self, slot, bucket, receivers):
            # The sign of the first number.
            self._flats[slot][bucket.entries[0].offset + 3] ^= 128
            return super().stage(slot, bucket, receivers)

    with pytest.raises(MilesError, match=r"M473.*1 of 8 parameters are wrong: model.embed_tokens.weight"):
        publish(Wrong(tmp_path), [served], weights(1), check_equal=True, bucket_bytes=1 << 20)


def test_weights_change_under_load(served, weights, tmp_path, request_of):
    seen, stop = [[], []], threading.Event()

    def load(number):
        while not stop.is_set():
            result = served.ask(request_of(f"r{number}-{len(seen[number])}", 40))
            seen[number] += [each.weight_version for each in result.values() if each.output_ids]

    threads = [threading.Thread(target=load, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    published = []
    for seed in (1, 2, 3):
        published.append(publish(FileSender(tmp_path), [served], weights(seed)))
        before = sum(map(len, seen))
        while sum(map(len, seen)) < before + 4:
            stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    for versions in seen:
        assert versions == sorted(versions)
    assert set(seen[0] + seen[1]) >= set(published)


def test_a_server_that_was_killed_starts_again_with_the_weights_that_were_served(serve, weights, checkpoint, tmp_path):
    served = serve()
    engine, keeper = served.engine, WeightKeeper(tmp_path / "served")
    publisher = WeightPublisher(open_transport("disk", tmp_path, "trainer-0"), bucket_bytes=4096)
    for version in (1, 2):
        publisher.publish(version, iter(weights(version).items()), [Handle("engine-0", engine)], keeper=keeper)
    publisher.close()
    before = engine.weight_digests()
    assert engine.ended() == ""
    psutil.Process(engine.info()["pid"]).kill()
    deadline = time.monotonic() + 30
    while not engine.ended():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "exit code 137" in engine.ended()
    with pytest.raises(MilesError, match="M511"):
        engine.health(5.0)
    engine.stop()
    assert engine.ended() == ""
    engine.start(EngineLaunch(rank=0, model=checkpoint))
    serve_kept(engine, tmp_path / "served", 2)
    keeper.close()
    assert engine.info()["weight_version"] == "2"
    assert engine.weight_digests() == before
    assert engine.serving
