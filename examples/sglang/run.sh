#!/usr/bin/env bash
# The quickstart's task with FSDP and SGLang taking turns on one GPU: sort five digits, a larger model, GRPO.
# Arguments go to the GRPO stage: bash examples/sglang/run.sh --num-rollout 40
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" examples/quickstart/run.py --out runs/sglang --size 5m --head-dim 64 \
  --engine sglang --device cuda --colocate \
  --sglang-attention-backend triton --sglang-sampling-backend pytorch --sglang-grammar-backend none \
  --sglang-disable-prefill-cuda-graph --sglang-mem-fraction-static 0.4 --sglang-context-length 512 \
  "$@"
