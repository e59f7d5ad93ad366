"""Trackers: TensorBoard and Weights & Biases, with all metrics, the run's description and the sample answers.

- `install.install_trackers` replaces transformers' callbacks by ours and returns `Trackers`, the one object that
  training calls. Trackers without a class here are transformers' own callbacks.
- `tensorboard.TensorBoardTracker`, `wandb.WandbTracker`: one module per tracker.
- `guard.GuardedTracker` wraps each of them, so that a failing tracker never ends a run.
- `names` maps log keys to tracker tags, `run_text` describes the run.

To add a tracker: write a module with a subclass of its transformers callback, whose `on_log` sends
`names.tracked(logs)`; `add_samples(step, lines)` and `finish(step, result, picture)` are optional. Add it to
`install._our_trackers`, and its package to `TRACKERS` in `sft/configuration/checks/training.py`, which allows its name
in `report_to`.

The package must not know the trainer's internals or the data pipeline; it receives log values and records.
"""
