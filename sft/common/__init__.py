"""What every package may use: records, errors, texts, files, standard streams.

Public: `data_records`, `run_records`, `machine_records` (frozen records that pass between packages), `errors`,
`hub_errors`, `outside_files`, `shapes` (files that others made), `json_lines`, `text`, `files`, `standard_streams`,
`did_you_mean`.

Must not know any other package, and imports the standard library only.
"""
