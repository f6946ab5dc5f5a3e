"""The ``transformers`` engine of miles: batched KV-cache decoding in the engine's own process."""
