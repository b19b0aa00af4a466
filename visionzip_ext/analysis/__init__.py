"""Other ways to choose tokens, in plain PyTorch: to compare the operators' policies with. No kernel serves them.

Each takes the scores and keys of an image's patches, without CLS, and returns which are kept; `visionzip_ext.select`
says what the operators' own policies keep.
"""

from visionzip_ext.analysis.selections import greedy_dpp, scope, suppressed_by_place

__all__ = ["greedy_dpp", "scope", "suppressed_by_place"]
