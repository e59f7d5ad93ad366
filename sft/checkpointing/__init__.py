"""Checkpoints: their manifest, publishing, rotation, and resuming from them. Imports neither torch nor transformers.

- `manifest`: `write_manifest`, `read_manifest`, `find_damage`
- `named_files`: `named_files_of`, a checkpoint without files that its manifest does not name
- `publish`: `publish`, `rotate`, `clear_unfinished`, and the messages for disk errors
- `final_model`: publishing the final model in the output folder
- `resume_point`: `ResumePoint`, the checkpoint to resume from
- `checkpoints`: `resolve_checkpoint`, and moving an earlier run's files aside
- `same_run`: whether a run may resume from a checkpoint
- `output_lock`: `OutputLock`, one run at a time in an output folder, and whether that folder is still there
- `own_paths`: whether a file or folder of a run is a link

The package only handles files and JSON documents; its callers save models, optimizers and trainers.
"""
