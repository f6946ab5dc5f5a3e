"""miles: post-train language models with reinforcement learning, from plugins."""

from miles_core.version import __version__

__all__ = ["__version__"]
