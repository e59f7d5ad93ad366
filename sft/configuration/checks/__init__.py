"""Checks between settings: contradictions that can be found without loading a library or a model.

`find.find_contradictions` runs all checks; `notices.find_notices` reports settings that have no effect. Checks that
need more than the settings receive it: `machine` what this machine lacks, `steps` the length of the run, `rows` the
counts of the data. They are pure too, and the entry or the package `training` calls them.
"""
