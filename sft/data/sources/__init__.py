"""Files of every kind, and datasets of the `datasets` library, to raw rows with file and line, in chunks.

Public:
    load: `open_sources` and `Source`.
    chunks: `Chunk`, consecutive rows that are parsed when they are needed.
    files: Find files, and tell their split.

It knows nothing of formats, tokenizers or settings other than those of data.
"""
