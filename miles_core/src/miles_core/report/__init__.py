"""Runs on disk, for people to look at: which there are, how each went, and a page about one. Standard library only."""
