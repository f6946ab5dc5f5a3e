"""Arguments of SGLang's server that miles sets itself, or that contradict how it works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reserved:
    """Why an argument cannot be given, and which option of miles takes its place, if any."""

    why: str
    use: str = ""

    def line(self) -> str:
        """Both."""
        return f"{self.why}; use {self.use}" if self.use else self.why


_PLACED = "miles places engines on GPUs and nodes"
_PAIRS = "miles gives servers their roles"
_CLIENT = "miles' own calls to the server would be refused"

RESERVED = {
    "model_path": Reserved("engines serve the run's checkpoint", "--hf-checkpoint"),
    "served_model_name": Reserved("engines serve one model, whose weights have versions"),
    "tokenizer_path": Reserved("prompts are tokenised with the checkpoint's tokenizer", "--hf-checkpoint"),
    "skip_tokenizer_init": Reserved("rewards read the text of responses, and stop texts need a tokenizer"),
    "host": Reserved("servers bind to loopback, or to the node's address where a run spans nodes"),
    "port": Reserved("miles chooses the ports", "--rollout-engine-port"),
    "nccl_port": Reserved("miles chooses the ports"),
    "dist_init_addr": Reserved("miles chooses where nodes of an engine meet"),
    "nnodes": Reserved(_PLACED, "--rollout-num-gpus-per-engine"),
    "node_rank": Reserved(_PLACED),
    "tp_size": Reserved(_PLACED, "--rollout-num-gpus-per-engine"),
    "base_gpu_id": Reserved(_PLACED),
    "gpu_id_step": Reserved(_PLACED),
    "device": Reserved(_PLACED, "--device"),
    "use_ray": Reserved("an engine is one process of the run, which miles ends"),
    "random_seed": Reserved("every engine gets the run's seed plus its number", "--seed"),
    "skip_server_warmup": Reserved("the first request that miles waits for warms the server up"),
    "enable_memory_saver": Reserved("it goes with whether engines make room for the trainer", "--offload-rollout"),
    "enable_return_routed_experts": Reserved("it goes with routing replay", "--use-rollout-routing-replay"),
    "weight_version": Reserved("versions are those that the trainer publishes"),
    "weight_cache_mode": Reserved("weights in a shared cache cannot be replaced"),
    "disaggregation_mode": Reserved(_PAIRS, "--prefill-num-servers"),
    "disaggregation_bootstrap_port": Reserved(_PAIRS, "--prefill-num-servers"),
    "grpc_mode": Reserved("miles speaks HTTP to engines"),
    "smg_grpc_mode": Reserved("miles speaks HTTP to engines"),
    "ssl_certfile": Reserved(_CLIENT),
    "ssl_keyfile": Reserved(_CLIENT),
    "api_key": Reserved(_CLIENT),
    "admin_api_key": Reserved(_CLIENT),
}
"""By the name of the value in SGLang's ``ServerArgs``."""
