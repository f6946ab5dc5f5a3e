"""Corrections for samples of another policy than the one that is trained, one a file.

They multiply the policy-gradient term of a token: off-policy sequence masking (``opsm.py``), then truncated importance sampling
(``tis.py``) or a function of the user's, then rejection of mismatched tokens (``rejection.py``). A token that is left out counts in
the loss's denominators all the same, so that leaving tokens out never makes the others weigh more.
"""

from miles_algos.corrections.corrections import Corrections

__all__ = ["Corrections"]
