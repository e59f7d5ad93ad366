"""Tokenizer and model: loaded, quantized, given adapters, checked against the settings, saved."""

from sft.modeling.precision import resolve_precision

__all__ = ["resolve_precision"]
