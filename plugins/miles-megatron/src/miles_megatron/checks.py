"""What the parallel sizes go with, as far as options and ``config.json`` say. Light: nothing here imports torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.config import (
    AlgorithmOptions,
    ClusterOptions,
    CriticOptions,
    PluginOptions,
    RolloutOptions,
    TeacherOptions,
    TrainingOptions,
)
from miles_core.errors import UsageError
from miles_megatron import tensors
from miles_megatron.architecture import MTP_LAYERS as MTP_ENTRY
from miles_megatron.architecture import architecture
from miles_megatron.options import MegatronOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from miles_core.options import Config

OWNER = "miles-megatron"
TENSOR = "--tensor-model-parallel-size"
PIPELINE = "--pipeline-model-parallel-size"
VIRTUAL = "--num-virtual-stages-per-pipeline-rank"
CONTEXT = "--context-parallel-size"
EXPERT = "--expert-model-parallel-size"
EXPERT_TENSOR = "--expert-tensor-parallel-size"
BRIDGE = "--megatron-to-hf-mode bridge"
MTP_TRAINING = "--enable-mtp-training"
MTP_LAYERS = "--mtp-num-layers"
MTP_FACTOR = "--mtp-loss-scaling-factor"
MODELS = (
    ("--hf-checkpoint", RolloutOptions, "hf_checkpoint"),
    ("--ref-load", AlgorithmOptions, "ref_load"),
    ("--teacher-load", TeacherOptions, "teacher_load"),
    ("--critic-load", CriticOptions, "critic_load"),
)


def problems(config: Config) -> Iterator[UsageError]:
    """Why the run cannot be as its options say.

    Sizes (M550), contradictions (M551), models that are not built (M345), checkpoints that are not the model's (M342, M343), layers
    of multi-token prediction that are not there (M570), and their options (M571), weights that megatron-bridge shall convert and
    cannot, as it is not installed (M577) or does not know the model's parts (M578).
    """
    options = config.peek(MegatronOptions)
    wrong = list(_below_one(options))
    yield from wrong
    yield from _contradictions(config, options)
    yield from _mtp(config, options)
    if options.megatron_to_hf_mode == "bridge":
        yield from _bridge(config, options)
    if wrong:
        return
    yield from _world(config, options)
    for flag, group, field in MODELS:
        folder = getattr(config.peek(group), field)
        said = None if folder is None else _said(Path(folder).expanduser())
        if said is None:
            continue
        if options.custom_model_provider_path is None:
            try:
                built = architecture(said, options.model_name)
            except UsageError as problem:
                yield problem
                continue
            stored = tensors.stored_shapes(Path(folder).expanduser())
            if stored is not None:
                headless = flag == "--critic-load"
                yield from tensors.problems(built, stored, Path(folder), headless=headless)
        yield from _model(f"{flag} {folder}", Constants.of(said), options)


def _below_one(options: MegatronOptions) -> Iterator[UsageError]:
    sizes = {
        TENSOR: options.tensor_model_parallel_size,
        PIPELINE: options.pipeline_model_parallel_size,
        VIRTUAL: options.virtual_stages,
        CONTEXT: options.context_parallel_size,
        EXPERT: options.expert_model_parallel_size,
        EXPERT_TENSOR: 1 if options.expert_tensor_parallel_size is None else options.expert_tensor_parallel_size,
        "--make-vocab-size-divisible-by": options.make_vocab_size_divisible_by,
    }
    for flag, size in sizes.items():
        if size < 1:
            yield _size(f"{flag} is {size}", "it is a number of parts", "give 1 or more")


def _contradictions(config: Config, options: MegatronOptions) -> Iterator[UsageError]:
    layout = config.peek(TrainingOptions).qkv_format
    if options.context_parallel_size > 1 and layout == "bshd":
        why = "context-parallel ranks share packed rows"
        yield _contradiction(
            f"{CONTEXT} {options.context_parallel_size} contradicts --qkv-format bshd", why, "set --qkv-format thd"
        )
    if options.sequence_parallel and options.tensor_model_parallel_size == 1:
        why = "it shares tokens among tensor-parallel ranks, and there is one"
        yield _contradiction("--sequence-parallel has no effect", why, f"raise {TENSOR}, or leave it out")
    if options.virtual_stages > 1 and options.pipeline_model_parallel_size == 1:
        why = "virtual stages interleave pipeline ranks, and there is one"
        yield _contradiction(f"{VIRTUAL} {options.virtual_stages} has no effect", why, f"raise {PIPELINE}, or leave it out")
    if options.virtual_stages > 1 and layout == "bshd":
        why = "interleaved pipeline stages exchange packed rows of one shape"
        yield _contradiction(f"{VIRTUAL} {options.virtual_stages} contradicts --qkv-format bshd", why, "set --qkv-format thd")
    if options.overlap_param_gather and not (options.overlap_grad_reduce and options.use_distributed_optimizer):
        why = "parameters are gathered as gradients are reduced, by the distributed optimizer"
        fix = "set --overlap-grad-reduce, and leave --no-use-distributed-optimizer out"
        yield _contradiction("--overlap-param-gather lacks what it builds on", why, fix)
    full = options.recompute_granularity == "full"
    if not full and (options.recompute_method is not None or options.recompute_num_layers is not None):
        flag = "--recompute-method" if options.recompute_method is not None else "--recompute-num-layers"
        yield _contradiction(f"{flag} has no effect", "it is of full recomputation", "set --recompute-granularity full")
    if options.recompute_modules and options.recompute_granularity != "selective":
        why = "it is of selective recomputation"
        yield _contradiction("--recompute-modules has no effect", why, "set --recompute-granularity selective")
    if options.recompute_num_layers is not None and options.recompute_num_layers < 1:
        why = "it is a number of layers"
        yield _contradiction(f"--recompute-num-layers is {options.recompute_num_layers}", why, "give 1 or more")
    if options.train_memory_margin_bytes < 0:
        what = f"--train-memory-margin-bytes is {options.train_memory_margin_bytes}"
        yield _contradiction(what, "it is a number of bytes", "give 0 or more")


def _mtp(config: Config, options: MegatronOptions) -> Iterator[UsageError]:
    """What is wrong with multi-token prediction."""
    number, factor = options.mtp_num_layers, options.mtp_loss_scaling_factor
    if not options.enable_mtp_training:
        given = {MTP_LAYERS: number is not None, MTP_FACTOR: factor != type(options).mtp_loss_scaling_factor}
        for flag in (flag for flag, changed in given.items() if changed):
            why = "layers of multi-token prediction are not trained, and stay as they are in the checkpoint"
            yield _contradiction(f"{flag} has no effect", why, f"set {MTP_TRAINING}, or leave it out")
        return
    if not 0 < factor < math.inf:
        why = "it is the weight of a loss"
        yield UsageError("M571", f"{MTP_FACTOR} is {factor:g}", owner=OWNER, why=why, fix="give a number above 0")
    folder = config.peek(RolloutOptions).hf_checkpoint
    said = None if folder is None else _said(Path(folder).expanduser())
    if said is None:
        return
    try:
        there = architecture(said, options.model_name).mtp_layers
    except UsageError:
        # Said of the model itself.
        return
    if not there:
        what, why = f"{MTP_TRAINING} has nothing to train", f"{folder} has no layers of multi-token prediction"
        yield UsageError("M570", what, owner=OWNER, why=why, fix="leave it out, or give a model that has some, such as MiMo")
    elif number is not None and not 0 < number <= there:
        why = f"{folder} has {there} of these layers, of which the first so many are trained"
        fix = "leave it out, or give 1" + (f" to {there}" if there > 1 else "")
        yield UsageError("M571", f"{MTP_LAYERS} is {number}", owner=OWNER, why=why, fix=fix)


def _bridge(config: Config, options: MegatronOptions) -> Iterator[UsageError]:
    """What keeps megatron-bridge from converting weights, as far as can be said without importing it."""
    here = find_spec("megatron")
    if here is None or PathFinder.find_spec("megatron.bridge", here.submodule_search_locations) is None:
        what, fix = f"{BRIDGE} needs megatron-bridge", 'pip install "miles-megatron[bridge]", or set it to raw'
        yield UsageError("M577", what, owner=OWNER, why="it is not installed", fix=fix)
    if config.peek(PluginOptions).advantage_estimator == "ppo":
        yield _not_by_bridge("a critic", "--advantage-estimator ppo trains one, and megatron-bridge does not know value heads")
    if options.model_name is not None:
        yield _not_by_bridge(f"--model-name {options.model_name}", "megatron-bridge goes by the config's own architecture")
    folder = config.peek(RolloutOptions).hf_checkpoint
    said = None if folder is None else _said(Path(folder).expanduser())
    if said is not None and _number(said, MTP_ENTRY):
        why = f"{folder} has some, which megatron-bridge would leave out"
        yield _not_by_bridge("layers of multi-token prediction", why)


def _not_by_bridge(what: str, why: str) -> UsageError:
    fix = "leave it out, or set it to raw"
    return UsageError("M578", f"{BRIDGE} does not go with {what}", owner=OWNER, why=why, fix=fix)


def _world(config: Config, options: MegatronOptions) -> Iterator[UsageError]:
    cluster, critic = config.peek(ClusterOptions), config.peek(CriticOptions)
    actors = max(cluster.actor_num_nodes, 1) * max(cluster.actor_num_gpus_per_node, 1)
    worlds = {"actor": actors}
    if critic.critic_num_gpus_per_node is not None:
        worlds["critic"] = max(critic.critic_num_nodes or cluster.actor_num_nodes, 1) * critic.critic_num_gpus_per_node
    tensor, pipeline, context = (
        options.tensor_model_parallel_size,
        options.pipeline_model_parallel_size,
        options.context_parallel_size,
    )
    expert, expert_tensor = options.expert_model_parallel_size, options.expert_tensor_parallel_size or tensor
    for whose, world in worlds.items():
        if world % (tensor * pipeline * context):
            what = f"{world} ranks of the {whose} do not divide into parts of {tensor * pipeline * context}"
            why = f"that is {TENSOR} {tensor} x {PIPELINE} {pipeline} x {CONTEXT} {context}"
            yield _size(what, why, "change the number of ranks or these sizes")
        elif (world // pipeline) % (expert * expert_tensor):
            what = f"{world // pipeline} ranks of a pipeline stage do not divide into parts of {expert * expert_tensor}"
            why = f"that is {EXPERT} {expert} x {EXPERT_TENSOR} {expert_tensor}"
            yield _size(what, why, "change the number of ranks or these sizes")


@dataclass(frozen=True)
class Constants:
    """What a model's ``config.json`` says about its parts; 0 where it says nothing."""

    heads: int
    key_heads: int
    layers: int
    hidden: int
    experts: int
    expert_hidden: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Constants:
        """Those of a config."""
        heads = _number(config, "num_attention_heads")
        return cls(
            heads=heads,
            key_heads=_number(config, "num_key_value_heads") or heads,
            layers=_number(config, "num_hidden_layers"),
            hidden=_number(config, "intermediate_size"),
            experts=max(_number(config, name) for name in ("num_experts", "num_local_experts", "n_routed_experts")),
            expert_hidden=_number(config, "moe_intermediate_size"),
        )


def _said(folder: Path) -> dict[str, Any] | None:
    """The config of an HF directory; None when there is none that can be read, which others report."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _number(found: dict[str, Any], name: str) -> int:
    value = found.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def _model(said: str, model: Constants, options: MegatronOptions) -> Iterator[UsageError]:
    tensor, context = options.tensor_model_parallel_size, options.context_parallel_size
    stages = options.pipeline_model_parallel_size * options.virtual_stages
    for what, number in (("attention heads", model.heads), ("key-value heads", model.key_heads), ("hidden units", model.hidden)):
        if number % tensor:
            yield _size(f"{TENSOR} {tensor} does not fit {said}", f"it does not divide the model's {number} {what}", _near(number))
    if model.heads % tensor == 0 and (model.heads // tensor) % context:
        share = model.heads // tensor
        why = f"it does not divide the {share} attention heads of a tensor-parallel rank"
        yield _size(f"{CONTEXT} {context} does not fit {said}", why, _near(share))
    if model.layers % stages:
        what = f"{stages} pipeline stages do not fit {said}"
        why = f"{PIPELINE} x {VIRTUAL} does not divide the model's {model.layers} layers"
        yield _size(what, why, _near(model.layers))
    expert = options.expert_model_parallel_size
    if expert > 1 and not model.experts:
        yield _size(f"{EXPERT} {expert} does not fit {said}", "the model has no experts", "leave it out")
    elif model.experts % expert:
        why = f"it does not divide the model's {model.experts} experts"
        yield _size(f"{EXPERT} {expert} does not fit {said}", why, _near(model.experts))
    share = options.expert_tensor_parallel_size or tensor
    if model.experts and model.expert_hidden % share:
        flag = f"{TENSOR} {tensor}" if options.expert_tensor_parallel_size is None else f"{EXPERT_TENSOR} {share}"
        why = f"it does not divide the {model.expert_hidden} hidden units of an expert"
        yield _size(f"{flag} does not fit {said}", why, _near(model.expert_hidden))
    if model.experts and tensor > 1 and not options.sequence_parallel:
        why = "tensor-parallel ranks exchange the tokens of a mixture of experts, and would all have the same ones"
        yield _contradiction(f"{TENSOR} {tensor} does not fit {said}", why, "set --sequence-parallel")


def _near(number: int) -> str:
    return "take " + " or ".join(str(n) for n in range(1, number + 1) if number % n == 0 and n <= 64)


def _size(what: str, why: str, fix: str) -> UsageError:
    return UsageError("M550", what, owner=OWNER, why=why, fix=fix)


def _contradiction(what: str, why: str, fix: str) -> UsageError:
    return UsageError("M551", what, owner=OWNER, why=why, fix=fix)
