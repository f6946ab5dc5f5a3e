"""The page of a run, in a headless Chromium."""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Look = Callable[..., Any]
TABS = ("curves", "time", "samples", "options")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_every_tab_draws_within_the_window_and_loads_nothing(run: Path, look: Look, width: int, dark: bool) -> None:
    page = look(run, width=width, dark=dark)
    assert page.run("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    for tab in TABS:
        page.click(tab.title())
        assert page.run("document.querySelector('#tabs [aria-selected=true]').textContent.toLowerCase()") == tab
        assert page.run("document.querySelector('#main').textContent.length") > 100
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        if folder := os.environ.get("MILES_SCREENSHOTS"):
            picture = base64.b64decode(page.call("Page.captureScreenshot", format="png")["data"])
            Path(folder, f"{tab}-{width}-{'dark' if dark else 'light'}.png").write_bytes(picture)
    assert page.troubles() == []


def test_what_a_model_wrote_is_text_and_never_runs(run: Path, look: Look) -> None:
    page = look(run, tab="samples")
    page.choose("Rollout", "rollout_0")
    assert "</script><script>window.pwned=1</script>" in page.run("document.querySelector('[data-role=response]').textContent")
    assert "</script><script>window.pwned=1</script>" in page.run("document.querySelector('[data-role=prompt]').textContent")
    for tab in TABS:
        page.run(f"location.hash = '{tab}'")
        page.run("new Promise((done) => setTimeout(done, 0))")
        assert page.run("document.querySelectorAll('main img, main script, main b > *').length") == 0
    assert page.run("typeof window.pwned") == "undefined"
    assert page.run("document.querySelectorAll('script').length") == 2
    assert page.troubles() == []


def test_markup_that_got_into_the_page_would_not_run_either(run: Path, look: Look) -> None:
    page = look(run)
    markup = "<img src=x onerror='window.pwned = 3'><a id=a href='javascript:window.pwned=4'>x</a>"
    page.run(f"document.querySelector('main').innerHTML = {json.dumps(markup)}")
    page.run("document.querySelector('#a').click()")
    page.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.pwned = 5'; document.body.append(s); })()"
    )
    # The picture that cannot be loaded tells so a moment later.
    page.run("new Promise((done) => setTimeout(done, 100))")
    assert page.run("typeof window.pwned") == "undefined"
    assert any("Content Security Policy" in trouble for trouble in page.troubles())


def test_metrics_are_found_by_words_and_told_by_the_mouse(run: Path, look: Look) -> None:
    page = look(run)
    assert page.run("document.querySelectorAll('[data-metric]').length") > 6
    page.choose("Search metrics", "LOSS train")
    assert set(page.run("[...document.querySelectorAll('[data-metric]')].map((c) => c.dataset.metric)")) == {"train/loss"}
    page.hover("[data-metric='train/loss'] svg")
    assert page.run("document.querySelector('#tip').hidden") is False
    # The plot begins at 58 of 360 and ends at 352: its 23 steps have number 10 in the middle of the picture.
    assert page.run("document.querySelector('#tip').textContent") == "optimizer step 10\n0.09091"


def test_a_logarithmic_axis(run: Path, look: Look) -> None:
    page = look(run)
    ticks = "[data-metric='train/ppo_kl'] text[text-anchor=end]"
    straight = page.texts(ticks)
    page.click("Log scale")
    # From 10 ** -1 down to 10 ** -6.75, and half way between the powers.
    assert page.texts(ticks)[:3] == ["1.78e-7", "1.33e-4", "0.1"]
    assert straight[1] == "0.05"
    assert page.texts("[data-metric='eval/held_out-truncated_ratio'] p") == ["nothing above 0"]
    assert "no finite value" in page.run("document.querySelector(\"[data-metric='train/grad_norm']\").textContent")


def test_the_waterfall_has_each_phase_behind_the_one_before(run: Path, look: Look) -> None:
    page = look(run, tab="time")
    place = "[b.dataset.phase, parseFloat(b.style.left), parseFloat(b.style.width)]"
    lanes = page.run(f"[...document.querySelectorAll('.lane')].map((l) => [...l.children].map((b) => {place}))")
    assert len(lanes) == 12
    for lane in lanes:
        assert [phase for phase, _, _ in lane] == ["rollout", "offload", "train", "save", "publish"]
        for (_, left, width), (_, after, _) in itertools.pairwise(lane):
            assert left + width == pytest.approx(after, abs=0.1)
    assert max(left + width for lane in lanes for _, left, width in lane) == pytest.approx(100, abs=0.1)
    page.hover(".lane b")
    assert page.run("document.querySelector('#tip').textContent").startswith("generation ")


def test_a_token_tells_its_log_prob_and_its_weights(run: Path, look: Look) -> None:
    page = look(run, tab="samples")
    page.run("document.querySelectorAll('.list button')[1].click()")
    tokens = page.run("[...document.querySelectorAll('[data-role=response] span')].length")
    assert tokens == page.run("document.querySelector('[data-role=response]').textContent.length")
    page.hover("[data-role=response] span")
    first = page.run("document.querySelector('#tip').textContent")
    assert first.startswith("token 0: log-prob -")
    assert first.endswith("weights 11")
    page.hover("[data-role=response] span:last-of-type")
    assert page.run("document.querySelector('#tip').textContent").endswith("weights 12")


def test_characters_beyond_the_basic_plane_do_not_shift_tokens(run: Path, look: Look) -> None:
    page = look(run, tab="samples")
    texts = page.texts("[data-role=response] span")
    assert "\U0001f600" in texts
    assert texts[-3:] == ["e", "n", "d"]


def test_dropped_samples_and_those_without_a_grade_say_why(run: Path, look: Look) -> None:
    page = look(run, tab="samples")

    def chosen(kind: str) -> list[str]:
        page.choose("Kind", kind)
        return page.texts(".list .peek")

    assert chosen("dropped") == ["all the same", "all the same"]
    assert "dropped: zero_std_1.0" in page.run("document.querySelector('.browser').textContent")
    assert chosen("not graded") == ["cannot grade this"]
    assert "not graded: no label" in page.run("document.querySelector('.browser').textContent")
    assert len(chosen("all")) == 8
    assert len(chosen("trained on")) == 5


def test_a_run_that_wrote_nothing_yet_has_a_page(tmp_path: Path, look: Look) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/metrics.jsonl").touch()
    page = look(tmp_path / "new")
    for tab in TABS:
        page.click(tab.title())
        assert page.run("document.querySelector('#main').textContent")
    assert page.troubles() == []
