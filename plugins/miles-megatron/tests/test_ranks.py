"""Two processes that share the work in every way, against plain transformers and against the fsdp backend."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.slow
BOUND = 1e-4


@pytest.fixture(scope="module")
def rows(tiny):
    return tiny.samples(8)


@pytest.fixture(scope="module")
def wanted(tiny, root, rows):
    """Log-probs and entropy of each row, and the gradients of all, of transformers."""
    found = {}

    def of(model):
        if model not in found:
            whole, *outputs = tiny.reference(root / model, rows)
            lengths = [response for _, response, _ in rows]
            outputs = list(zip(*(each.split(lengths) for each in outputs), strict=True))
            gradients = {name: param.grad for name, param in whole.named_parameters()}
            if model == "moe":
                from transformers.core_model_loading import revert_weight_conversion

                gradients = revert_weight_conversion(whole, gradients)
            found[model] = outputs, gradients
        return found[model]

    return of


def test_every_split_computes_what_transformers_does(helpers, results, wanted):
    seen = 0
    for name, (model, _) in helpers.SPLITS.items():
        for rank in results:
            found = rank["splits"][name]
            place = found["place"]
            assert place.computes_loss == (found["log_probs"] is not None)
            if not place.computes_loss:
                continue
            mine = wanted(model)[0][place.data_rank :: place.data_size]
            for i, key in enumerate(("log_probs", "entropy")):
                assert torch.allclose(found[key], torch.cat([row[i] for row in mine]), atol=BOUND), (name, key)
            seen += 1
    assert seen >= len(helpers.SPLITS)


def test_every_split_has_the_gradients_of_transformers(tiny, helpers, results, wanted):
    for name, (model, _) in helpers.SPLITS.items():
        for rank in results:
            assert tiny.furthest(rank["splits"][name]["gradients"], wanted(model)[1]) < BOUND, name


def test_ranks_know_their_place(results):
    def places(name):
        return [rank["splits"][name]["place"] for rank in results]

    assert [(p.data_rank, p.data_size, p.context_size, p.computes_loss, p.reports) for p in places("DP2")] == [
        (0, 2, 1, True, True),
        (1, 2, 1, True, False),
    ]
    assert [(p.data_size, p.computes_loss, p.reports) for p in places("TP2")] == [(1, True, True), (1, True, False)]
    assert [(p.data_size, p.computes_loss, p.reports) for p in places("PP2")] == [(1, False, False), (1, True, True)]
    assert [(p.data_size, p.context_size, p.reports) for p in places("CP2")] == [(1, 2, True), (1, 2, False)]
    assert [p.data_size for p in places("EP2")] == [2, 2]


def test_steps_of_adam_are_those_of_the_fsdp_backend(results):
    steps = results[0]["steps"]
    skipped = steps.pop("skipped")
    assert len(steps) == 8
    for name, (reports, wanted, distance) in steps.items():
        assert [report.grad_norm for report in reports] == pytest.approx([report.grad_norm for report in wanted], rel=1e-5), name
        assert [report.learning_rates for report in reports] == [report.learning_rates for report in wanted], name
        assert distance < 2e-4, name
    assert skipped == (True, 0.0)


def test_chunks_and_gathered_logits_have_the_gradients_of_the_fsdp_backend(results):
    assert set(results[0]["requests"]) == {"chunks TP2", "chunks CP2", "logits TP2", "logits CP2"}
    assert max(results[0]["requests"].values()) < BOUND


def test_critics_are_those_of_the_fsdp_backend(results):
    for name, (norms, wanted, distance, values) in results[1]["critics"].items():
        assert norms == pytest.approx(wanted, rel=1e-5), name
        assert distance < BOUND, name
        assert values, name
    assert results[0]["critics"]["PP2"][3] is None


def test_copies_and_other_models_come_and_go(results):
    for rank in results:
        assert len(rank["copies"]) >= 14
        assert [name for name, right in rank["copies"].items() if not right] == []


def test_routes_are_recorded_and_replayed(results):
    for number, rank in enumerate(results):
        for name, (same, layers, distance) in rank["routes"].items():
            assert same, name
            assert layers == ([number] if name == "PP2 recomputed" else [0, 1]), name
            assert distance < BOUND, name


def test_errors_have_codes(results):
    assert results[0]["refusals"] == {"unknown weights": "M432", "a loss of nothing": "M430", "no routers": "M435"}
