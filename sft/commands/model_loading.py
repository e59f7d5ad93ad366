"""Loading a saved model for inference: tokenizer, weights, adapters, device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, load_peft_weights
from transformers import AutoConfig, GenerationConfig

from sft.commands.saved_models import SavedModel
from sft.common.errors import ConfigError, ModelError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, QuantizationConfig
from sft.modeling.causality import check_computes
from sft.modeling.loading import load_pretrained_model
from sft.modeling.loading_errors import readable_loading_errors
from sft.modeling.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
_DTYPES = ("float32", "bfloat16", "float16")


def resolve_device(setting: str) -> str:
    """Return the device for `--device`; auto is the first GPU, or the CPU if there is none.

    Raises:
        ConfigError: if this machine has no such device.
    """
    has_mps = torch.backends.mps.is_available()
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] + ["mps"] * has_mps + ["cpu"]
    if setting == "auto":
        return devices[0]
    device = "cuda:0" if setting == "cuda" else setting
    if device not in devices:
        raise ConfigError(
            f"command line: --device: this machine has no device {setting}; available: {', '.join(devices)}."
        )
    return device


def saved_dtype(saved: SavedModel) -> str:
    """Return the data type that the weights are saved in, according to config.json; float32 if it names none."""
    with readable_loading_errors("configuration", saved.weights):
        config = AutoConfig.from_pretrained(
            saved.weights, revision=saved.base_revision or "main", trust_remote_code=saved.trust_remote_code
        )
    dtype = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    name = str(dtype).removeprefix("torch.")
    return name if name in _DTYPES else "float32"


def load_saved_tokenizer(saved: SavedModel) -> "PreTrainedTokenizerBase":
    """Load the tokenizer that was saved with the model or the adapters, or else that of the base model.

    Raises:
        ModelError: if there is none.
    """
    folder = Path(saved.name_or_path)
    has_own = not folder.is_dir() or any((folder / name).is_file() for name in _TOKENIZER_FILES)
    return load_tokenizer(
        ModelConfig(
            model_name_or_path=saved.weights,
            model_revision=saved.base_revision,
            tokenizer_name_or_path=saved.name_or_path if has_own else None,
            trust_remote_code=saved.trust_remote_code,
        )
    )


def load_saved_model(
    saved: SavedModel, *, dtype: str, device: str, quantization: QuantizationConfig | None = None
) -> "PreTrainedModel":
    """Load a model in evaluation mode; adapters are loaded on top of their base model.

    Args:
        saved: the model.
        dtype: data type of the weights in memory.
        device: device of the weights.
        quantization: of the weights, or of the adapters' base model.

    Raises:
        ModelError: if it cannot be loaded.
    """
    config = ModelConfig(
        model_name_or_path=saved.weights,
        model_revision=saved.base_revision,
        dequantize=saved.dequantizes,
        trust_remote_code=saved.trust_remote_code,
    )
    context, precision = DistributedContext(device=device), Precision(weights=dtype, mixed="no")
    model: Any = load_pretrained_model(config, None, quantization, precision, context)
    if quantization is None and getattr(model, "hf_quantizer", None) is None:
        with readable_loading_errors("model", saved.weights):
            model = model.to(device)
    if saved.is_adapters:
        model = load_saved_adapters(model, saved)
    check_computes(model)
    return model.eval()


def load_saved_adapters(model: Any, saved: SavedModel) -> Any:
    """Load adapters on top of their base model, whose embeddings are resized if the adapters were saved with more rows.

    Raises:
        ModelError: if adapters and base model do not match.
    """
    with readable_loading_errors("adapters", saved.name_or_path):
        num_rows = _num_embedding_rows(load_peft_weights(saved.name_or_path, device="cpu"), model)
        if num_rows is not None and num_rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(num_rows, mean_resizing=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, saved.name_or_path)
    if any("missing adapter keys" in str(warning.message) for warning in caught):
        # peft would initialize the missing adapters, and the model would answer as if it had not been trained.
        raise ModelError(
            f"{saved.name_or_path}: the adapters lack weights for layers of {saved.base}: they belong to another base "
            "model (name it with --base), or the file is incomplete."
        )
    if Path(saved.name_or_path, "generation_config.json").is_file():
        with readable_loading_errors("generation_config.json", saved.name_or_path):
            model.generation_config = GenerationConfig.from_pretrained(saved.name_or_path)
    return adapted


def check_vocabulary(model: Any, tokenizer: "PreTrainedTokenizerBase", name_or_path: str) -> None:
    """Check that the model has an embedding for each token of the tokenizer.

    Raises:
        ModelError: if it has not; the message names both counts.
    """
    num_rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > num_rows:
        raise ModelError(
            f"{name_or_path}: the tokenizer has {len(tokenizer):,} tokens, but the model has {num_rows:,} embeddings: "
            "they do not belong together."
        )


def _num_embedding_rows(weights: Mapping[str, torch.Tensor], model: Any) -> int | None:
    """Return the rows of the input embedding that is saved with adapters; None if none is saved."""
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    suffixes = (f"{name}.weight", f"{name}.base_layer.weight", f"{name}.modules_to_save.weight")
    return next((tensor.shape[0] for key, tensor in weights.items() if key.endswith(suffixes)), None)
