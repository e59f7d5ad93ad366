#!/usr/bin/env bash
# Trains on several GPUs of this machine (or, where there is none, in several processes on CPU).
#
#   ./launch_training.sh --config my.yaml --gpus 4 [--learning_rate 1e-4 ...]
#
# Without --gpus: all GPUs of the machine. Further options are settings, as for sft_main.py.
# PYTHON names the interpreter (default: python, else python3).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$(command -v python || echo python3)}
config=""
gpus=""
overrides=()

usage() { sed -n '4,7p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; }

while [ $# -gt 0 ]; do
  case "$1" in
    --config | --config_file | --gpus | --num_gpus)
      if [ $# -lt 2 ]; then echo "launch_training.sh: $1 needs a value" >&2; exit 2; fi
      case "$1" in --gpus | --num_gpus) gpus=$2 ;; *) config=$2 ;; esac
      shift 2 ;;
    --config=* | --config_file=*) config=${1#*=}; shift ;;
    --gpus=* | --num_gpus=*) gpus=${1#*=}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) overrides+=("$1"); shift ;;
  esac
done

if [ -z "$config" ]; then echo "launch_training.sh: name the configuration: --config my.yaml" >&2; usage >&2; exit 2; fi
if [ -z "$gpus" ]; then
  gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c . || true)
  if [ "$gpus" = 0 ]; then gpus=1; fi
fi

# sft_main.py checks the configuration first and then starts torchrun's launcher: a mistake is one line, not one a rank.
exec "$python" "$here/sft_main.py" --config_file "$config" --num_gpus "$gpus" ${overrides[@]+"${overrides[@]}"}
