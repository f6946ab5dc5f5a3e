"""A run folder with everything in it, hostile text included, and a headless Chromium to look at its page."""

from __future__ import annotations

import json
import math
import os
import random
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from miles_core.loggers.jsonl import JsonlLogger
from miles_core.loggers.timeline import Timeline
from miles_core.options import Config
from miles_core.report.lifetime import lifetime
from miles_core.rollout.record import Recorder
from miles_core.samples import Invalid, Sample, Scored, Status

HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=2'><!-- <b>bold</b> @@script@@ \u2028 \U0001f600 &lt;"
)
ROLLOUTS = 12
PHASES = {"rollout": 4.0, "offload": 0.3, "train": 3.0, "save": 0.4, "publish": 0.8}


def run_folder(folder: Path) -> Path:
    """Write a finished run."""
    folder.mkdir(parents=True)
    drawn = random.Random(0)
    with lifetime(folder, ROLLOUTS):
        logger = JsonlLogger(Config([]))
        logger.start(str(folder), {}, {"train": 0, "rollout": 0, "eval": 0})
        timeline, clock = Timeline(folder, 0), 1.7e9
        recorder = Recorder(
            folder / "samples", lambda ids: "".join(map(chr, ids)), lambda all_ids: ["".join(map(chr, ids)) for ids in all_ids]
        )
        for rollout in range(ROLLOUTS):
            for step in (2 * rollout, 2 * rollout + 1):
                logger.log(
                    {"train/loss": 1 / (1 + step), "train/ppo_kl": 10.0 ** -(1 + step / 4), "train/grad_norm": math.nan}, step
                )
            reward = 1 - math.exp(-rollout / 4)
            logger.log({"rollout/raw_reward": reward, "rollout/<b>odd</b>": 1.0, "perf/step_time": 8.5}, rollout)
            if rollout % 4 == 0:
                logger.log({"eval/held_out": 0.25 + rollout / 20, "eval/held_out-truncated_ratio": 0.0}, rollout)
            for phase, spent in PHASES.items():
                spent *= 0.8 + 0.4 * drawn.random()
                timeline.add(phase, rollout, clock, spent)
                clock += spent
            recorder.write(f"rollout_{rollout}", *_samples(drawn, rollout))
        logger.close()
    (folder / "config.yaml").write_text(f"lr: 1.0e-06\nname: {json.dumps(HOSTILE)}\n", encoding="utf-8")
    (folder / "plugins.lock.json").write_text('{"miles-core": "0.1.0"}\n', encoding="utf-8")
    return folder


def _samples(drawn: random.Random, rollout: int) -> tuple[list[Sample], list[list[Sample]], dict[int, str]]:
    def sample(number: int, response: str, **changes: Any) -> Sample:
        ids = list(map(ord, response))
        split = len(ids) // 2
        made = {
            "index": number,
            "group_index": number // 2,
            "prompt_ids": list(map(ord, f"What is {number} + {rollout}? {HOSTILE if number == 0 else ''}")),
            "response_ids": ids,
            "response": response,
            "label": str(number + rollout),
            "rollout_log_probs": [-drawn.expovariate(1.5) for _ in ids],
            "weight_versions": [(rollout, split), (rollout + 1, len(ids) - split)],
            "status": Status.COMPLETED,
            "reward": float(number % 2),
            "score": Scored(float(number % 2)),
        }
        return Sample(**{**made, **changes})

    texts = [
        f"Let me add the numbers {i} and {rollout}. The sum of both is {i + rollout}, so the answer is {i + rollout}."
        for i in range(6)
    ]
    kept = [sample(0, f"answer {HOSTILE} end"), *(sample(i, texts[i]) for i in range(1, 6))]
    kept[2] = sample(2, "tool output here", loss_mask=[1] * 5 + [0] * 6 + [1] * 5)
    kept[3] = sample(3, "cannot grade this", reward=None, score=Invalid(f"no label {HOSTILE}"))
    lost = [sample(8, "all the same", reward=1.0), sample(9, "all the same", reward=1.0)]
    return kept, [lost], {4: f"zero_std_1.0 {HOSTILE if rollout == 0 else ''}".strip()}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder."""
    return run_folder(tmp_path_factory.mktemp("runs") / "first")


@dataclass
class Browser:
    """Headless Chromium, spoken to over a pipe in the DevTools protocol."""

    process: subprocess.Popen[bytes]
    read: int
    write: int
    rest: bytes = b""
    number: int = 0
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, seconds: float = 60.0, **params: Any) -> dict[str, Any]:
        """One command and its answer; events that come meanwhile are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)
        raise AssertionError(f"no answer to {method}")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.read], [], [], 60)[0], "Chromium does not answer"
            found = os.read(self.read, 1 << 16)
            assert found, "Chromium has ended"
            self.rest += found
        line, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(line))

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page and wait for it."""
        self.session, self.events = "", []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, text: str) -> None:
        """Press the button that says ``text``."""
        self.run(f"[...document.querySelectorAll('button')].find((b) => b.textContent === {json.dumps(text)}).click()")

    def choose(self, label: str, value: str) -> None:
        """Pick from the select of that label, or type into the field of that label."""
        selector = json.dumps(f"[aria-label={json.dumps(label)}]")
        self.run(
            f"(() => {{ const s = document.querySelector({selector}); s.value = {json.dumps(value)};"
            " for (const name of ['input', 'change']) s.dispatchEvent(new Event(name)); })()"
        )

    def texts(self, selector: str) -> list[str]:
        """What the elements say."""
        return list(self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)"))

    def hover(self, selector: str) -> None:
        """Put the mouse on the middle of an element."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getClientRects()[0]; return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def troubles(self) -> list[str]:
        """Exceptions, messages of the console and anything that was loaded besides the page."""
        self.run("1")
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                found.append(json.dumps(params)[:400])
            elif (
                method == "Network.requestWillBeSent"
                and params["request"]["url"].split("#")[0] != params["documentURL"].split("#")[0]
            ):
                found.append(f"loads {params['request']['url']}")
        return found


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium; skips without one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program, shell = next(filter(None, map(shutil.which, names)), None), shutil.which("bash")
    if program is None or shell is None:
        pytest.skip("no Chromium is installed")
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--hide-scrollbars"),
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ]
    process = subprocess.Popen(
        [shell, "-c", f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}', program, *options],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    made = Browser(process, from_read, to_write)
    yield made
    # After its last page the browser owes nobody anything.
    process.terminate()
    process.wait(timeout=60)
    os.close(from_read)
    os.close(to_write)


@pytest.fixture
def look(browser: Browser, tmp_path: Path) -> Callable[..., Browser]:
    """``look(folder, width=..)``: the browser with the page of the run open."""

    def opened(folder: Path, tab: str = "curves", **how: Any) -> Browser:
        from miles_core.report.page import page

        path = tmp_path / "report.html"
        path.write_text(page(folder, rollouts=40, samples=24), encoding="utf-8", errors="backslashreplace")
        browser.open(f"{path.as_uri()}#{tab}", **how)
        return browser

    return opened
