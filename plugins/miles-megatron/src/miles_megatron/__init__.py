"""Training backend ``megatron``."""
