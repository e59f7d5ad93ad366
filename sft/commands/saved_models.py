"""What training left, found and loaded again: a whole model, adapters with their base, a checkpoint of either."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sft.checkpointing.checkpoints import list_checkpoints
from sft.common.errors import ConfigError, ModelError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, QuantizationConfig
from sft.modeling.loading import load_pretrained_model
from sft.modeling.loading_errors import readable_loading_errors
from sft.modeling.tokenizer import load_tokenizer
from sft.reporting.run_record import RunRecord, read_run_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("sft.model")
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.safetensors.index.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel:
    """A model that can be loaded: what was named, and what belongs to it."""

    place: str
    """The folder, or the name on the Hub."""
    base: str | None = None
    """Adapters' base, a folder or a name on the Hub; None for a whole model."""
    record: RunRecord = field(default_factory=RunRecord)
    """Of the run that made it, where it left one."""
    trust_remote_code: bool = False

    @property
    def is_adapters(self) -> bool:
        return self.base is not None

    @property
    def weights(self) -> str:
        """Where the whole model, or the adapters' base, is loaded from."""
        return self.base or self.place


def find_saved_model(place: str, *, base: str | None = None, trust_remote_code: bool = False) -> SavedModel:
    """What a folder, or a name on the Hub, holds.

    Args:
        place: as it was typed.
        base: adapters' base, where it is not the one that they name.
        trust_remote_code: run code that comes with a model.

    Raises:
        ModelError: if there is no model, with what there is instead.
        ConfigError: if a base is named for what is no adapters.
    """
    folder = Path(place).expanduser()
    if folder.exists():
        place = str(folder)
        settings = _adapter_settings_in(folder)
        is_checkpoint = folder.name.startswith("checkpoint-") and not (folder / "resolved_config.yaml").exists()
        record = read_run_record(folder.absolute().parent if is_checkpoint else folder)
    elif _looks_like_a_path(place):
        raise ModelError(f"{place}: no such folder.")
    else:
        settings, record = _adapter_settings_on_hub(place), RunRecord()
    if settings is not None:
        found = base or _base_of(settings, folder)
        return SavedModel(place=place, base=found, record=record, trust_remote_code=trust_remote_code)
    if base is not None:
        raise ConfigError(f"command line: --base is for adapters, and {place} is a whole model; leave it out.")
    return SavedModel(place=place, record=record, trust_remote_code=trust_remote_code)


def base_before_training(saved: SavedModel) -> str:
    """The model that training began with: the adapters' base, or what the run's record names.

    Raises:
        ConfigError: if neither tells.
    """
    base = saved.base or saved.record.settings.get("model_name_or_path")
    if not isinstance(base, str):
        raise ConfigError(
            f"command line: --compare: {saved.place} does not tell what it was trained from (no resolved_config.yaml "
            "in it). Name that model: --compare BASE."
        )
    return base


def quantization_of_training(saved: SavedModel) -> QuantizationConfig | None:
    """How the base was quantized when adapters were trained on it; None if it was not, or the run left no record.

    Raises:
        ConfigError: if the record names values that there are not.
    """
    given = saved.record.settings.get("quantization_config") if saved.is_adapters else None
    if not given:
        return None
    try:
        return QuantizationConfig(**given)
    except TypeError as error:
        raise ConfigError(f"{saved.record.folder}/resolved_config.yaml: quantization_config: {error}.") from None


def resolve_device(setting: str) -> str:
    """The device that a command line means; auto is the GPU where there is one.

    Raises:
        ConfigError: if it is not there.
    """
    has_mps = torch.backends.mps.is_available()
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] + ["mps"] * has_mps + ["cpu"]
    if setting == "auto":
        return devices[0]
    device = "cuda:0" if setting == "cuda" else setting
    if device not in devices:
        raise ConfigError(f"command line: --device: {setting} is not on this machine; there: {', '.join(devices)}.")
    return device


def saved_dtype(saved: SavedModel) -> str:
    """The type that the weights are saved in, as far as their config tells; else float32."""
    from transformers import AutoConfig

    with readable_loading_errors("configuration", saved.weights):
        config = AutoConfig.from_pretrained(saved.weights, trust_remote_code=saved.trust_remote_code)
    found = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    name = str(found).removeprefix("torch.")
    return name if name in ("float32", "bfloat16", "float16") else "float32"


def load_saved_tokenizer(saved: SavedModel) -> "PreTrainedTokenizerBase":
    """The tokenizer that was saved with the model or the adapters; the base's where none was.

    Raises:
        ModelError: if there is none.
    """
    folder = Path(saved.place)
    has_own = not folder.is_dir() or any((folder / name).is_file() for name in _TOKENIZER_FILES)
    return load_tokenizer(
        ModelConfig(
            model_name_or_path=saved.weights,
            tokenizer_name_or_path=saved.place if has_own else saved.weights,
            trust_remote_code=saved.trust_remote_code,
        )
    )


def load_saved_model(
    saved: SavedModel, *, dtype: str, device: str, quantization: QuantizationConfig | None = None
) -> "PreTrainedModel":
    """The model, ready to answer; adapters beside their base, as they were trained.

    Args:
        saved: what to load.
        dtype: type of the weights in memory.
        device: where to.
        quantization: of the weights, or of the adapters' base.

    Raises:
        ModelError: if it cannot be loaded.
    """
    config = ModelConfig(model_name_or_path=saved.weights, trust_remote_code=saved.trust_remote_code)
    context, precision = DistributedContext(device=device), Precision(weights=dtype, mixed="no")
    model = load_pretrained_model(config, None, quantization, precision, context)
    if quantization is None and getattr(model, "hf_quantizer", None) is None:
        with readable_loading_errors("model", saved.weights):
            model = model.to(device)
    if saved.is_adapters:
        model = with_saved_adapters(model, saved)
    return model.eval()


def with_saved_adapters(model: Any, saved: SavedModel) -> Any:
    """A base with the adapters beside it, and with the rows of embeddings that were added for them.

    Raises:
        ModelError: if adapters and base do not fit.
    """
    from peft import PeftModel, load_peft_weights
    from transformers import GenerationConfig

    with readable_loading_errors("adapters", saved.place):
        rows = _embedding_rows(load_peft_weights(saved.place, device="cpu"), model)
        if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, saved.place)
    if any("missing adapter keys" in str(warning.message) for warning in told):
        # peft would start these from nothing, and the model would answer as if it had not been trained.
        raise ModelError(
            f"{saved.place}: its adapters lack weights for layers of {saved.base}: they belong to another base (name "
            "it with --base), or the file is incomplete."
        )
    if Path(saved.place, "generation_config.json").is_file():
        with readable_loading_errors("generation_config.json", saved.place):
            model.generation_config = GenerationConfig.from_pretrained(saved.place)
    return adapted


def check_vocabulary(model: Any, tokenizer: "PreTrainedTokenizerBase", place: str) -> None:
    """Refuses a tokenizer with tokens that the model has no embedding for.

    Raises:
        ModelError: naming both counts.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"{place}: its tokenizer has {len(tokenizer):,} tokens and the model {rows:,}: they do not belong together."
        )


def _adapter_settings_in(folder: Path) -> Mapping[str, Any] | None:
    """What `adapter_config.json` says; None where the folder holds a whole model.

    Raises:
        ModelError: if it holds neither.
    """
    if folder.is_file():
        raise ModelError(f"{folder} is a file. Name the folder that holds the model.")
    if (folder / "adapter_config.json").is_file():
        return _read_adapter_settings(folder / "adapter_config.json")
    checkpoints = [path for path in list_checkpoints(folder) if (path / "config.json").is_file() or
                   (path / "adapter_config.json").is_file()]  # fmt: skip
    has_weights = any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES)
    if (folder / "config.json").is_file() and (has_weights or not checkpoints):
        return None
    if checkpoints:
        names = ", ".join(path.name for path in checkpoints)
        raise ModelError(
            f"{folder}: no model here yet (its run did not end), but {names}. Name one of them: {checkpoints[-1]}"
        )
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise ModelError(f"{folder}: no model here (neither config.json nor adapter_config.json); there: {there}.")


def _adapter_settings_on_hub(name: str) -> Mapping[str, Any] | None:
    from transformers.utils.peft_utils import find_adapter_config_file

    with readable_loading_errors("model", name):
        found = find_adapter_config_file(name)
    return _read_adapter_settings(Path(found)) if found is not None else None


def _read_adapter_settings(path: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}.") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: expected an object, found {type(settings).__name__}.")
    return settings


def _base_of(settings: Mapping[str, Any], folder: Path) -> str:
    """The base that adapters name, where it is.

    Raises:
        ModelError: if it was a folder and is there no more.
    """
    named = settings.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ModelError(f"{folder}: its adapters do not name their base. Name it: --base BASE.")
    if Path(named).is_dir():
        return named
    if Path(named).name == "base_model":  # kept beside the adapters (of a GGUF file), which may have been moved
        for beside in (folder / "base_model", folder.absolute().parent / "base_model"):
            if beside.is_dir():
                return str(beside)
    if _looks_like_a_path(named):
        raise ModelError(
            f"{folder}: its adapters were trained on {named}, which is not there. Name the base: --base BASE."
        )
    return named


def _looks_like_a_path(place: str) -> bool:
    """Whether it can only be a folder: a name on the Hub is `name` or `owner/name`."""
    return place.startswith((".", "/", "~")) or place.count("/") > 1 or place.endswith("/") or "\\" in place


def _embedding_rows(weights: Mapping[str, torch.Tensor], model: Any) -> int | None:
    """Rows of the input embedding that adapters bring with them; None if they leave it alone."""
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    ends = (f"{name}.weight", f"{name}.base_layer.weight", f"{name}.modules_to_save.weight")
    return next((tensor.shape[0] for key, tensor in weights.items() if key.endswith(ends)), None)
