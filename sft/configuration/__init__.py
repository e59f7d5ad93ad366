"""Settings: their declaration, reading, checking and printing, and the command lines of all commands.

Public: `schema` (SFTConfig and its sections), `assembly.ConfigBuilder` (which reports unknown keys and wrong values),
`reading`, `values`, `printing`, `help`, `command_line`, `batch_sizes`. `config_manager.load_config` combines them.

Must not know torch, transformers, the data or the model: a configuration error is reported without loading them.
"""
