"""Data: files and datasets to prepared rows, each row used or counted as dropped with its reason.

Public:
    sources: Files and datasets to raw rows.
    preparation: `SourcePreparation`, which prepares one source or finds it in the cache.
    splits, mixtures: The validation split, and how often an epoch takes each row.
    counts, checks: The report of all rows, and the reasons not to train on them.
    examples: Sample prompts and previews.
    streaming: Rows prepared while they are read.
    store, cache, digest: Prepared rows on disk, found by their content.

It knows nothing of models, batches, training or reports.
"""
