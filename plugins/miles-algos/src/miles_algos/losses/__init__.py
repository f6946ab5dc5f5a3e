"""Losses, one a file, and the KL estimators that they share."""
