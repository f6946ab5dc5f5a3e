"""The guide that explains this package shows its files as they are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = ROOT.parents[1] / "docs" / "write-a-plugin.md"


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide is in the repository of miles only")
def test_the_guide_shows_these_files() -> None:
    shown = re.findall(r"^```(?:toml|python)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    package = ROOT / "src" / "miles_example_reward"
    files = [ROOT / "pyproject.toml", package / "plugin.py", package / "brevity.py", ROOT / "tests" / "test_brevity.py"]
    assert shown == [file.read_text(encoding="utf-8") for file in files]
