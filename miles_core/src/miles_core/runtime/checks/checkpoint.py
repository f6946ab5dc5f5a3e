"""HF checkpoint directories: config, weights, tokenizer, chat template."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from miles_core.config import AlgorithmOptions, DataOptions, EvaluationOptions, RolloutOptions
from miles_core.runtime.checks.report import Report

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",))


def check_checkpoint(report: Report) -> Path | None:
    """Check ``--hf-checkpoint`` and ``--ref-load``; returns the model's folder."""
    path = report.peek(RolloutOptions).hf_checkpoint
    if path is None:
        report.error("M208", "--hf-checkpoint is missing", fix="give the HF directory of the model to start from")
        return None
    report.use(RolloutOptions, "hf_checkpoint")
    folder = Path(path).expanduser()
    config = check_model(report, folder, report.said(RolloutOptions, "hf_checkpoint"))
    if config is not None:
        _check_tokenizer(report, folder)
    _check_lengths(report, folder, config or {})
    reference = report.peek(AlgorithmOptions).ref_load
    if reference is not None:
        check_model(report, Path(reference).expanduser(), report.said(AlgorithmOptions, "ref_load"))
    return folder


def check_model(report: Report, folder: Path, said: str) -> dict[str, Any] | None:
    """Check an HF directory's config and weights; returns the config, or None when there is none to read."""
    if not folder.is_dir():
        name = str(folder)
        hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
        why = "it is a file" if folder.exists() else "there is no such folder"
        fix = f"download it first: hf download {name} --local-dir DIR" if hub else "check the path"
        report.error("M330", f"{said} cannot be used", owner=name, why=why, fix=fix)
        return None
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = "give the directory that save_pretrained wrote, with config.json in it"
        report.error("M331", f"{said} is no HF checkpoint", owner=str(folder), why=f"it has no {CONFIG_FILE}", fix=fix)
        return None
    except (OSError, ValueError) as error:
        report.error(
            "M331", f"{CONFIG_FILE} cannot be read", owner=str(folder / CONFIG_FILE), why=str(error), fix="download it again"
        )
        return None
    if not isinstance(config, dict):
        report.error("M331", f"{CONFIG_FILE} is no object", owner=str(folder / CONFIG_FILE), fix="download it again")
        return None
    _check_weights(report, folder, said)
    return config


def _check_weights(report: Report, folder: Path, said: str) -> None:
    def bad(why: str, fix: str, owner: Path = folder) -> None:
        report.error("M332", f"{said} has no usable weights", owner=str(owner), why=why, fix=fix)

    files = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX_FILE).is_file():
        try:
            index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            named = sorted(set(index["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            bad(f"the index cannot be read: {type(error).__name__}: {error}", "download it again", folder / INDEX_FILE)
            return
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            bad(f"{missing[0]}{more} is named in the index and not there", "download the rest of the checkpoint")
        files = [folder / name for name in named if name not in missing]
    elif not files:
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.gguf") for path in folder.glob(pattern))
        why = f"it has {others[0]} but no *.safetensors" if others else "it has no *.safetensors"
        bad(why, "save the model with save_pretrained(..., safe_serialization=True)" if others else "download the weights")
        return
    for file in files:
        if why := _damage(file):
            bad(why, "download it again", file)


def _damage(file: Path) -> str:
    """Why a safetensors file cannot be whole, by its head: 8 bytes of length, a JSON header, then the tensors it lists."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        if head.startswith(b"version "):
            return "it is a Git LFS pointer, not the file itself"
        if len(head) < 8:
            return f"it has {size} bytes"
        (length,) = struct.unpack("<Q", head)
        if length > size - 8:
            return f"it is cut off, or no safetensors file: {size} bytes, and its header alone would take {length}"
        try:
            header = json.loads(opened.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return "its header is no JSON"
    if 8 + length + end > size:
        return f"it is cut off: {size} of {8 + length + end} bytes are there"
    return ""


def _check_tokenizer(report: Report, folder: Path) -> None:
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        report.error(
            "M333",
            f"{report.said(RolloutOptions, 'hf_checkpoint')} has no tokenizer",
            owner=str(folder),
            why="it has none of " + ", ".join("+".join(names) for names in TOKENIZER_FILES),
            fix="save the model's tokenizer into it, with tokenizer.save_pretrained",
        )
    elif report.peek(DataOptions).apply_chat_template and not _has_template(folder):
        report.error(
            "M334",
            f"{report.said(DataOptions, 'apply_chat_template')} has no template to apply",
            owner=str(folder),
            why="neither chat_template.jinja nor tokenizer_config.json has one",
            fix="add a chat_template.jinja to it, or leave --apply-chat-template out",
        )


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    if any((folder / "additional_chat_templates").glob("*.jinja")):
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _check_lengths(report: Report, folder: Path, config: dict[str, Any]) -> None:
    """Lengths against the model's positions, and against one another."""
    rollout, evaluation = report.peek(RolloutOptions), report.peek(EvaluationOptions)
    context = rollout.rollout_max_context_len
    if rollout.rollout_max_response_len is None and not report.supervised and report.generates:
        if context is not None:
            report.derive(RolloutOptions, rollout_max_response_len=context)
        else:
            fix = "give the most tokens of a response, or --rollout-max-context-len"
            report.error("M208", "--rollout-max-response-len is missing", why="nothing would end a response", fix=fix)
    if context is not None and not report.supervised:
        if rollout.rollout_max_prompt_len is None:
            report.derive(RolloutOptions, rollout_max_prompt_len=max(context - 1, 1))
        elif rollout.rollout_max_prompt_len > context - 1:
            said, other = (report.said(RolloutOptions, name) for name in ("rollout_max_prompt_len", "rollout_max_context_len"))
            report.error("M217", f"{said} leaves no token for a response", why=f"{other} holds both", fix=f"take {context - 1}")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    positions = text.get("max_position_embeddings") if isinstance(text, dict) else None
    if not isinstance(positions, int):
        return
    lengths: list[tuple[tuple[str, int | None], ...]] = []
    if report.generates:
        lengths.append((("rollout_max_prompt_len", rollout.rollout_max_prompt_len if context is None else None),
                        ("rollout_max_response_len", rollout.rollout_max_response_len)))  # fmt: skip
        lengths.append((("rollout_max_context_len", context),))
    if report.evaluates:
        response = evaluation.eval_max_response_len
        lengths.append((("eval_max_prompt_len", evaluation.eval_max_prompt_len), ("eval_max_response_len", response)))
    for parts in lengths:
        given = [(name, value) for name, value in parts if value is not None]
        total = sum(value for _, value in given)
        if total > positions:
            group = EvaluationOptions if given[0][0].startswith("eval") else RolloutOptions
            said = " + ".join(report.said(group, name) for name, _ in given)
            why = f"the model has {positions} positions (max_position_embeddings) and {total} tokens would be needed"
            fix = f"take at most {positions} tokens of prompt and response together"
            report.error("M217", f"{said} is more than the model takes", owner=str(folder / CONFIG_FILE), why=why, fix=fix)
