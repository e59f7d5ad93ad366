"""Checks between settings: contradictions that can be found without loading a library or a model.

`find.find_contradictions` runs all checks; `notices.find_notices` reports settings that have no effect.
"""
