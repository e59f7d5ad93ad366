"""`python -m sft.check_gpu`: does this program work on this machine's GPU, and how fast?

- `__main__`: the command. `options`: its options. `supervision`: runs each section in a process of its own, prints its
  lines and writes `gpu_check.json`. `section_process`: that process. `outcome`: the records. None imports torch
- `sections/`: the checks. `sections.SECTIONS` lists them in their order
- `bench`: what the checks of a section work with. `program`: runs of the program, and trainers built as in a run
- `shapes`, `random_model`: models of random weights and rows of random words. `fitting_shape`: as many layers as fit.
  `step_timing`: times of steps. The benchmarks use these too

The checks compute with the same functions as a run. The package is above all others of `sft/`: nothing imports it.
"""
