#!/usr/bin/env bash
# One fine-tuning run on one node of a SLURM cluster:
#
#   sbatch examples/slurm_job.sh my.yaml [--learning_rate 1e-4 ...]
#
# Change the lines below to your cluster, or give them to sbatch: --gres=gpu:8 --time=12:00:00 ...
# A job that is stopped and submitted again goes on from its newest checkpoint.
#SBATCH --job-name=sft
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

if [ $# -lt 1 ]; then echo "usage: sbatch examples/slurm_job.sh my.yaml [--key value ...]" >&2; exit 2; fi
config=$1; shift

# SLURM copies this script away, so the repository is where sbatch was called, unless SFT_HOME says otherwise.
cd "${SFT_HOME:-${SLURM_SUBMIT_DIR:-.}}"
if [ -f .venv/bin/activate ]; then
  # shellcheck source=/dev/null
  source .venv/bin/activate
fi

# As many processes as GPUs were granted; one where the job asked for none.
gpus=${SLURM_GPUS_ON_NODE:-1}
exec ./launch_training.sh --config "$config" --gpus "$gpus" --resume_from_checkpoint auto "$@"
