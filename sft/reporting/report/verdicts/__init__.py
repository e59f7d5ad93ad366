"""Verdicts: what a run's records mean, one question at a time.

Each verdict comes with the numbers and the rule that it follows from. The rules are fixed thresholds, not opinions: the
same records always give the same verdicts. `find.find_verdicts` gives all of them; a new question goes into `learning`
(losses), `execution` (steps, hardware, answers) or `data`, and into the list in `find`. Nothing in here knows HTML or
Markdown.
"""
