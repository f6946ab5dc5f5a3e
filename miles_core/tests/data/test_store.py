"""Data files larger than memory, several of them, Parquet, tools, media, and orders that take no memory."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_core.data.media import engine_data
from miles_core.data.order import Shuffle
from miles_core.data.source import Keys, PromptSet
from miles_core.data.store import RowStore
from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import UsageError
from miles_core.samples import GenerateRequest, SamplingParams
from miles_core.serving import wire

MANY = 1_000_000
LIMIT = 64 * 1024**2
"""Bytes that may be resident beyond those of a small file; the rows themselves are more."""


def all_rows(text: str) -> list[dict[str, object]]:
    store = RowStore(text)
    for record, _ in store.scan():
        store.keep(record)
    return [store[i].values for i in range(len(store))]


def test_files_come_one_after_the_other_each_with_its_slice(write) -> None:
    a, b = (write(*({"n": f"{name}{i}"} for i in range(4)), name=f"{name}.jsonl") for name in "ab")
    assert [row["n"] for row in all_rows(f"{a}@[1:3],{b}@[:1], {a}@[3:]")] == ["a1", "a2", "b0", "a3"]
    odd = write({"n": "odd"}, name="x,y.jsonl")
    assert all_rows(odd) == [{"n": "odd"}]


def test_the_memory_of_a_data_set_does_not_grow_with_its_rows(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    path = tmp_path / "many.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, MANY, 10_000):
            file.writelines(
                f'{{"input": "What is {i} plus {i}? Think first.", "label": "{2 * i}"}}\n' for i in range(start, start + 10_000)
            )
    code = """
import sys
from miles_core.data.source import Cursor
from miles_core.data.store import RowStore

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = resident()
store = RowStore(sys.argv[1])
peak = before
for number, (record, row) in enumerate(store.scan()):
    store.keep(record)
    if number % 50_000 == 0:
        peak = max(peak, resident())
cursor = Cursor(len(store), shuffle=True, seed=1)
taken = [store[position].values["label"] for position in cursor.take(2000)]
print(len(store), len(set(taken)), max(peak, resident()) - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=200, check=True)
    rows, labels, grown = map(int, done.stdout.split())
    assert (rows, labels) == (MANY, 2000)
    assert grown < LIMIT < path.stat().st_size


@settings(deadline=None)
@given(size=st.integers(1, 300), seed=st.integers(0, 10**6))
def test_a_shuffle_is_a_permutation(size: int, seed: int) -> None:
    order = Shuffle(size, str(seed))
    assert sorted(order[i] for i in range(size)) == list(range(size))


def test_every_row_comes_first_about_equally_often() -> None:
    size, orders = 6, 6000
    counts = [0] * size
    for seed in range(orders):
        counts[Shuffle(size, str(seed))[0]] += 1
    # Chi-square with 5 degrees of freedom: 20.5 is passed once in a thousand.
    assert sum((n - orders / size) ** 2 / (orders / size) for n in counts) < 20.5


def test_parquet_is_read_as_json_lines_are(tmp_path: Path, write, plain) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"input": f"q{i}", "label": str(i), "metadata": {"level": i}, "data": b"\x00\x01"} for i in range(3000)]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    prompts = PromptSet(f"{path}@[1000:1003],{write({'input': 'last', 'label': 'x'})}", Keys(label="label"), plain)
    samples = [prompts.sample(i) for i in range(len(prompts))]
    assert [(s.prompt, s.label, s.metadata) for s in samples] == [
        *((f"q{i}", str(i), {"level": i}) for i in range(1000, 1003)),
        ("last", "x", {}),
    ]
    assert all_rows(f"{path}@[0:1]")[0]["data"] == base64.b64encode(b"\x00\x01").decode()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UsageError, match="M303"):
        all_rows(str(tmp_path / "broken.parquet"))


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(UsageError, match="M322") as caught:
        all_rows(str(tmp_path / "rows.parquet"))
    assert "pip install pyarrow" in caught.value.fix


def test_tools_may_be_json_text(write, templated) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    prompts = PromptSet(write({"input": "a", "tools": json.dumps(tools)}, {"input": "b", "tools": tools}), Keys(), templated)
    assert [prompts.sample(i).metadata["tools"] for i in range(2)] == [tools, tools]


@pytest.mark.parametrize("tools", ["{}", "no json", {"a": 1}, 3])
def test_tools_that_are_no_list(write, plain, tools: object) -> None:
    with pytest.raises(UsageError, match="M323"):
        PromptSet(write({"input": "a", "tools": tools}), Keys(), plain)


VISION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '[' + p['type'] + ']' }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MEDIA = Keys(media={"image": "images", "video": "clip"})


@pytest.fixture
def vision(save_tokenizer) -> PromptTokenizer:
    return PromptTokenizer(save_tokenizer(VISION), apply_chat_template=True)


def test_media_go_from_the_row_to_the_request(write, vision, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"picture")
    row = {"input": "<image>and<image>, <video>", "images": ["one.png", "https://x.y/z.png"], "clip": "QUJD"}
    sample = PromptSet(write(row), MEDIA, vision).sample(0)
    parts = [
        {"type": "image"},
        {"type": "text", "text": "and"},
        {"type": "image"},
        {"type": "text", "text": ", "},
        {"type": "video"},
    ]
    assert sample.prompt == [{"role": "user", "content": parts}]
    assert "user\n[image]and[image], [video]" in vision.decode_all([sample.prompt_ids])[0]
    assert sample.media == {"image": [str(tmp_path / "one.png"), "https://x.y/z.png"], "video": ["QUJD"]}
    media = {kind: tuple(map(engine_data, items)) for kind, items in sample.media.items()}
    request = GenerateRequest("a", sample.prompt_ids, SamplingParams(4), media=media)
    document = json.loads(wire.encode_call([request], batched=False, stream=False))
    assert document["image_data"] == [f"data:image/png;base64,{base64.b64encode(b'picture').decode()}", "https://x.y/z.png"]
    assert document["video_data"] == ["QUJD"]
    assert wire.decode_call(document).requests[0].media == media
    other = GenerateRequest("b", [1], SamplingParams(4))
    both = wire.decode_call(json.loads(wire.encode_call([request, other], batched=True, stream=True))).requests
    assert [each.media for each in both] == [media, None]


def test_messages_with_parts_stay_as_they_are(write, vision) -> None:
    parts = [{"type": "text", "text": "see "}, {"type": "image"}]
    row = {"input": [{"role": "user", "content": parts}], "images": [{"bytes": "QUJD", "path": None}]}
    sample = PromptSet(write(row), Keys(media={"image": "images"}), vision).sample(0)
    assert (sample.prompt, sample.media) == ([{"role": "user", "content": parts}], {"image": ["QUJD"]})


@pytest.mark.parametrize("row", [{"input": "<image>"}, {"input": "a", "images": "b"}, {"input": "<image>", "images": [3]}])
def test_media_that_do_not_fit_their_prompt(write, vision, row: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="M324"):
        PromptSet(write(row), MEDIA, vision)
