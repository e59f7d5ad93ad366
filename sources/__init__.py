"""Where rows come from: files of every kind we read, and datasets of the `datasets` library."""
