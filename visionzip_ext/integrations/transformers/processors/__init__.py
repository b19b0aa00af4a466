"""Processors that write as many placeholders as there are visual tokens."""
