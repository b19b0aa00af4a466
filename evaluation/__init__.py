"""The quality bench: a small LLaVA with a trained encoder answers questions about scenes, with all tokens and with few.

`python -m evaluation --help`; docs/quality.md says what it measures and what it cannot.
"""
