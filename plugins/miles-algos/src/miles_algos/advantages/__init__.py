"""Advantage estimators, one a file, and what they share: groups, the KL penalty in the reward, returns, the teacher's penalty."""
