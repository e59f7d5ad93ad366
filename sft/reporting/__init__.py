"""Everything a run writes for people and scripts: logs, reports, trackers and records.

- `log_lines`: lines and tables of the log; `time_left`: the remaining time.
- `metrics_log`, `samples_log`, `line_log`: `metrics.jsonl` and `samples.jsonl`. `remarks`: what rows contain that
  a user may not expect. `summary`: `run_summary.json`. `run_record`: the records of a finished run, read back. Keys in
  these files are a contract.
- `preflight/`: what a dry run shows and writes. `report/`: `report.html` and `report.md`. `trackers/`: TensorBoard and
  Weights & Biases. `curves`: plots as PNG files. `environment`: the machine.
- `templates`: Jinja2 environments that escape everything for HTML and Markdown.

Nothing in here may decide anything about training, and nothing from the data may act in a terminal, a page or Markdown.
The package must not know the trainer or the commands.
"""
