"""The ``fsdp`` training backend of miles: PyTorch FSDP2 on CPU (gloo) and GPU (nccl)."""
