"""What a person reads: the log's tables, metrics.jsonl, the curves, the summary."""
