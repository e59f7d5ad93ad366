"""Loads a model with MLX on the CPU and prints its logits, as JSON: `python read_with_mlx.py FOLDER TOKEN_IDS`."""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import load_model

mx.set_default_device(mx.cpu)
model, _ = load_model(Path(sys.argv[1]))
model.set_dtype(mx.float32)
logits = model(mx.array([json.loads(sys.argv[2])]))[0, -1]
print(json.dumps({"logits": logits.tolist()}))
