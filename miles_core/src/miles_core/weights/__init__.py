"""Publishing weights from trainer to engines as a transaction."""
