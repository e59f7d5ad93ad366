"""Compares runs by their records. Public: `runs`, `comparison.compare`, `text.comparison_lines`.

Must not know: torch, transformers, training, other commands.
"""
