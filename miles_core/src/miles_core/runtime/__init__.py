"""Processes of a run: the plan, placement, actors, supervision and the loop."""
