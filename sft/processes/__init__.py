"""The processes of a run: starting them, ranks, signals, agreement, and what each of them uses of the machine.

Light modules, which import neither torch nor transformers (the entries import them before the configuration is read):

- `environment`: ranks, launcher, CPU cores, cache folder
- `first_signals`, `signals`: Ctrl-C, SIGTERM and SIGUSR1 during start-up, preparation and training
- `exit_records`: exit statuses and problems that processes record for the launcher
- `watchdog`: ends a process that hangs
- `output`: what is written to a terminal or a log, without secrets and control characters
- `logs`, `libraries`, `terminal`: the log, quiet libraries, whether there is a terminal to draw on
- `machine`: GPUs, cores and compilers that this machine certainly lacks
- `heap`, `control_groups`: the C library's heap, memory limits of the system

Modules that import torch or rich:

- `launcher`: starts the processes of this machine
- `process_group`, `agreement`: the process group, and what all processes decide together
- `device_memory`, `device_allocator`: memory of the device, and torch's allocator on a GPU
- `device_peaks`, `utilization`: peak throughput and utilization of the device
- `live_line`: the line of progress on a terminal

The package knows no settings: callers pass plain values.
"""
