"""Budgets, tiles and decisions, and their arithmetic: shared by every engine's integration, so without transformers."""
