"""One HTML page about a run, with everything in it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from pathlib import Path

from miles_core.report.content import content, finite

SCRIPTS = ("core.js", "curves.js", "waterfall.js", "samples.js", "main.js")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def page(folder: Path, *, rollouts: int, samples: int) -> str:
    """The text of the page.

    Whatever a model or a data set wrote is in it as JSON in which no markup can stand, and is shown as text alone. The page's
    policy lets a browser run its own script, by its digest, and load nothing at all.
    """
    data = finite(content(folder, rollouts=rollouts, samples=samples))
    assets = files("miles_core.report").joinpath("assets")
    script = "\n".join(assets.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";(() => {{\n{script}\n}})();'
    style = assets.joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": html.escape(str(data["run"]["name"])),
        "policy": f"{POLICY}; script-src 'sha256-{digest}'",
        "style": style,
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES),
        "script": script,
    }
    text, done = assets.joinpath("page.html").read_text(encoding="utf-8"), []
    for name, value in parts.items():
        # Marks are looked for behind what is filled in: a value may look like one.
        before, mark, text = text.partition(f"@@{name}@@")
        assert mark, name
        done += [before, value]
    return "".join([*done, text])
