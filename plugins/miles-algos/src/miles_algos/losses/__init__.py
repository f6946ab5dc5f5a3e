"""Losses, one a file, and what the policy losses share: KL estimators, the terms beside the surrogate, the custom reduction."""
