"""Rewards that another server computes."""
