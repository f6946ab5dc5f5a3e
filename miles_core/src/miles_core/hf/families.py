"""Model families that transformers does not have, as their trunks alone."""

from __future__ import annotations

from functools import cache


@cache
def register_families() -> None:
    """Tell transformers' ``AutoConfig`` and ``AutoModelForCausalLM`` of them: ``mimo``, which is Qwen2 with layers of
    multi-token prediction, tensors that generation and log-probs leave out."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    if "mimo" in CONFIG_MAPPING:
        return

    class MiMoConfig(Qwen2Config):  # type: ignore[misc]
        """Of ``MiMoForCausalLM``."""

        model_type = "mimo"

    class MiMoForCausalLM(Qwen2ForCausalLM):  # type: ignore[misc]
        """The trunk."""

        config_class = MiMoConfig
        _keys_to_ignore_on_load_unexpected = (r"^model\.mtp_layers\.",)

    AutoConfig.register("mimo", MiMoConfig)
    AutoModelForCausalLM.register(MiMoConfig, MiMoForCausalLM)
