"""How responses end: stop tokens and texts, least lengths, aborts and pauses."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from miles_core.errors import MilesError
from miles_core.samples import FinishReason, GenerateRequest, SamplingParams


def changed(request: GenerateRequest, rid: str, **params: object) -> GenerateRequest:
    """The same request with other parameters."""
    return GenerateRequest(rid, request.input_ids, dataclasses.replace(request.params, **params))


def test_stop_ids_and_texts_stay_in_the_response(serve, requests_of):
    served = serve()
    free = requests_of([9, 14], max_new_tokens=20, ignore_eos=True)
    base = served.generate(free)
    for request in free:
        ids, text = base[request.rid].output_ids, base[request.rid].text
        at = next(i for i in range(4, 20) if ids.index(ids[i]) == i)
        by_id = served.generate([changed(request, "id", stop_token_ids=(ids[at],))])["id"]
        assert (by_id.output_ids, by_id.finish_reason) == (ids[: at + 1], FinishReason.STOP)
        # Two characters that occur together for the first time at tokens 10 and 11.
        found = next(i for i in range(5, 19) if text.index(text[i : i + 2]) == i)
        by_text = served.generate([changed(request, "text", stop=("never there", text[found : found + 2]))])["text"]
        assert (by_text.output_ids, by_text.finish_reason) == (ids[: found + 2], FinishReason.STOP)
        assert by_text.text == text[: found + 2]


def test_ignore_eos_and_least_length(serve, requests_of, reference):
    served = serve()
    requests = requests_of([6] * 20, max_new_tokens=12, min_new_tokens=5, temperature=4.0)
    results = served.generate(requests)
    assert min(len(r.output_ids) for r in results.values()) >= 5
    assert any(r.finish_reason is FinishReason.STOP for r in results.values())
    for request in requests:
        assert results[request.rid].log_probs == pytest.approx(reference(results[request.rid], request), abs=1e-5)
    ignoring = served.generate([changed(r, r.rid, ignore_eos=True, min_new_tokens=0) for r in requests])
    assert {len(r.output_ids) for r in ignoring.values()} == {12}
    assert any({1, 7, 20} & set(r.output_ids) for r in ignoring.values())


class Background:
    """A batch that is generated in another thread, held at a given step until released."""

    def __init__(self, served, requests, at_step: int) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        scheduler = served.engine.scheduler
        step, count = scheduler.decoder.step, [0]

        def held():
            count[0] += 1
            ended = step()
            if count[0] == at_step:
                self.reached.set()
                assert self.go.wait(30)
            return ended

        scheduler.decoder.step = held
        self.results = {}
        self.thread = threading.Thread(target=lambda: self.results.update(served.generate(requests)))
        self.thread.start()
        assert self.reached.wait(30)

    def act(self, served, action) -> None:
        """Post ``action`` while the step is held, so that it is the next thing that happens."""
        thread = threading.Thread(target=action)
        thread.start()
        while not served.engine.scheduler._commands:
            thread.join(0.001)
        self.go.set()
        thread.join(30)

    def end(self):
        """All results."""
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.results


def test_abort_all_returns_what_was_made(serve, requests_of, reference):
    served = serve(max_batch=4)
    requests = requests_of([5] * 10, max_new_tokens=100, ignore_eos=True)
    batch = Background(served, requests, at_step=6)
    batch.act(served, lambda: served.engine.scheduler.abort(None))
    results = batch.end()
    assert {r.finish_reason for r in results.values()} == {FinishReason.ABORT}
    assert sorted(len(r.output_ids) for r in results.values()) == [0] * 6 + [7] * 4
    for request in requests:
        assert results[request.rid].log_probs == pytest.approx(reference(results[request.rid], request), abs=1e-5)


def test_abort_of_one_request_leaves_the_others(serve, requests_of):
    served = serve(max_batch=4)
    requests = requests_of([5] * 6, max_new_tokens=30, ignore_eos=True)
    alone = served.generate(requests)
    batch = Background(served, requests, at_step=3)
    batch.act(served, lambda: served.engine.scheduler.abort(["r1-0", "r5-0", "nobody"]))
    results = batch.end()
    assert results["r1-0"].output_ids == alone["r1-0"].output_ids[:4]
    assert results["r5-0"].output_ids == ()
    for rid in ("r0-0", "r2-0", "r3-0", "r4-0"):
        assert results[rid].output_ids == alone[rid].output_ids


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_a_pause_that_keeps_requests_changes_no_token(serve, requests_of, mode):
    served = serve(max_batch=4)
    requests = requests_of([5, 9, 7, 6, 8], max_new_tokens=30, ignore_eos=True)
    alone = served.generate(requests)
    batch = Background(served, requests, at_step=5)
    batch.act(served, lambda: served.engine.pause(mode))
    assert served.engine.scheduler.running == (4 if mode == "in_place" else 0)
    assert served.engine.info()["paused"] == mode
    if mode == "in_place":
        with pytest.raises(Exception, match=r"M454 .*cannot flush now: 4 requests"):
            served.engine.flush()
    else:
        served.engine.flush()
    served.engine.resume()
    results = batch.end()
    assert {k: v.output_ids for k, v in results.items()} == {k: v.output_ids for k, v in alone.items()}


def test_a_request_during_a_pause_waits(serve, requests_of):
    served = serve()
    served.engine.pause()
    found = {}
    thread = threading.Thread(target=lambda: found.update(served.generate(requests_of([5]))))
    thread.start()
    while not served.engine.scheduler.waiting:
        thread.join(0.001)
    assert not found
    served.engine.resume()
    thread.join(30)
    assert found["r0-0"].output_ids


def test_a_failed_step_is_the_requests_error_and_the_engine_lives(serve, requests_of):
    served = serve()
    embeddings = served.engine.model.module.get_input_embeddings().weight
    kept = embeddings.clone()
    embeddings.fill_(float("nan"))
    with pytest.raises(Exception, match=r"M443 .*M455 .*not finite"):
        served.generate(requests_of([5, 6]))
    embeddings.copy_(kept)
    request = GenerateRequest("again", [5, 6], SamplingParams(max_new_tokens=3, ignore_eos=True))
    assert len(served.generate([request])["again"].output_ids) == 3


def test_an_engine_whose_thread_has_ended_says_so(serve) -> None:
    engine = serve().engine
    assert engine.ended() == ""
    engine.health(10.0)
    engine.scheduler.stop()
    assert engine.ended() == "its decoding thread has ended"
    with pytest.raises(MilesError, match="M456"):
        engine.health(10.0)
    engine.stop()
    assert engine.ended() == "", "it was told to end"
