"""The preflight report: what a run would train on, and whether it would start.

`text.Preflight` holds the facts, `text.preflight_lines` renders them for a terminal, `document.preflight_document` for
`preflight.json`. `row_text` shows rows with their supervised text, `memory_text` the predicted memory.

The package must not know how data is prepared or memory is predicted; it receives records.
"""
