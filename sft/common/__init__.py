"""What every package may use: records, errors, texts, files, standard streams.

Public: `data_records`, `run_records`, `machine_records` (frozen records that pass between packages), `errors`,
`device_errors`, `hub_errors`, `hub_names`, `outside_files`, `shapes` (files that others made), `json_lines`, `text`,
`secrets`, `files`, `standard_streams`, `optional_packages`, `did_you_mean`.

Must not know any other package, and imports the standard library only.
"""
