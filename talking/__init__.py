"""Talking to a trained model in a terminal, or with one question."""
