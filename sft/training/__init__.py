"""One run of training: what is resolved before the first step, the trainer's components, and the results of a run.

Before the first step:

- `output_folder`, `run_identity`: the claimed folder, the checkpoint to resume from, whether it is the same run
- `decided_precision`, `decided_layout`: the types to compute in; what trials on the model decided. For all processes
- `model_preparation`, `model_trials`, `row_layout`: the sharded model, its row layout by trial. `prepared_model`: the
  record of both
- `saved_state`: whether the state in a checkpoint can be read. `run_checks`: settings that do not fit the run
- `batch_size_trials`, `memory_probe`: the batch plan. `dry_run`: where a dry run ends
- `run_setup`: `RunSetup`, the record of all of this. `arguments`: transformers' `TrainingArguments`

The trainer (`trainer_utils.SFTTrainer` at the root is the last class of the chain):

- `resuming_trainer` <- `checkpointed_trainer` <- `evaluating_trainer`. `transformers_private`: what they override
- `gradients`, `step`, `sharded_step`, `evaluation_step`, `bad_steps`: one step, and what happens when it fails
- `loaders`, `stream_drops`, `progress`, `running_means`: batches and figures
- `callbacks`, `stopping`, `live_display`, `sample_answers`, `run_report`, `hub_pushes`: between steps
- `assembly`: puts the companions of a trainer together

At the end: `results`.

The package must not know the commands, nor how rows are read or rendered: it receives `TrainingData`.
"""
