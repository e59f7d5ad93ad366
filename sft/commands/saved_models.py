"""Finding a saved model: a full model, adapters with their base model, or a checkpoint of either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils.peft_utils import find_adapter_config_file

from sft.checkpointing.checkpoints import list_checkpoints
from sft.commands.paths import looks_like_a_path
from sft.common.errors import ConfigError, ModelError
from sft.common.files import require_utf8
from sft.common.outside_files import read_json
from sft.configuration.schema import QuantizationConfig
from sft.modeling.loading_errors import readable_loading_errors
from sft.reporting.run_record import RunRecord, read_run_record

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.safetensors.index.json")
_MAX_LISTED_FILES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel:
    """A model that can be loaded, with what belongs to it."""

    name_or_path: str
    """Its folder, or its name on the Hub."""
    base: str | None = None
    """Base model of adapters, a folder or a name on the Hub; None for a full model."""
    base_revision: str | None = None
    """Revision of that repository on the Hub."""
    record: RunRecord = field(default_factory=RunRecord)
    """Record of the run that trained it; empty if there is none."""
    trust_remote_code: bool = False

    @property
    def is_adapters(self) -> bool:
        return self.base is not None

    @property
    def dequantizes(self) -> bool:
        """Whether the adapters' base model was de-quantized in training, and has to be again."""
        return self.is_adapters and self.record.settings.get("dequantize") is True

    @property
    def weights(self) -> str:
        """Folder or Hub name of the full model, or of the adapters' base model."""
        return self.base or self.name_or_path


def find_saved_model(name_or_path: str, *, base: str | None = None, trust_remote_code: bool = False) -> SavedModel:
    """Find out what a folder, or a repository on the Hub, contains.

    Args:
        name_or_path: as given on the command line.
        base: base model of the adapters, if it is not the one that they name.
        trust_remote_code: run code that comes with a model.

    Raises:
        ModelError: if there is no model; the message lists what there is.
        ConfigError: if `base` is given, but the model is not adapters.
    """
    for option, given in (("the model", name_or_path), ("--base", base)):
        require_utf8(f"command line: {option}", given or "")
    folder, revision = Path(name_or_path).expanduser(), None
    if folder.exists():
        name_or_path = str(folder)
        adapter_settings = _adapter_settings_in(folder)
        is_checkpoint = folder.name.startswith("checkpoint-") and not (folder / "resolved_config.yaml").exists()
        record = read_run_record(folder.absolute().parent if is_checkpoint else folder)
    elif looks_like_a_path(name_or_path):
        raise ModelError(f"{name_or_path}: no such folder.")
    else:
        adapter_settings, record = _adapter_settings_on_hub(name_or_path), RunRecord()
    if adapter_settings is not None:
        own = adapter_settings.get("revision")
        revision = own if base is None and isinstance(own, str) else None
        base = base or _base_of(adapter_settings, folder)
    elif base is not None:
        raise ConfigError(f"command line: --base applies to adapters, but {name_or_path} is a full model; remove it.")
    return SavedModel(
        name_or_path=name_or_path,
        base=base,
        base_revision=revision if base is not None and not Path(base).is_dir() else None,
        record=record,
        trust_remote_code=trust_remote_code,
    )


def model_before_training(saved: SavedModel) -> str:
    """Return the model that training started from: the adapters' base model, or the one in the run's record.

    Raises:
        ConfigError: if neither is known.
    """
    base = saved.base or saved.record.settings.get("model_name_or_path")
    if not isinstance(base, str):
        raise ConfigError(
            f"command line: --compare: the model that {saved.name_or_path} was trained from is not known (no "
            "resolved_config.yaml in the folder). Name that model: --compare BASE."
        )
    return base


def quantization_of_training(saved: SavedModel) -> QuantizationConfig | None:
    """Return how the base model was quantized when the adapters were trained; None if it was not or is not recorded.

    Raises:
        ConfigError: if the record contains unknown settings.
    """
    given = saved.record.settings.get("quantization_config") if saved.is_adapters else None
    if not given:
        return None
    try:
        return QuantizationConfig(**given)
    except TypeError as error:
        raise ConfigError(f"{saved.record.folder}/resolved_config.yaml: quantization_config: {error}.") from None


def _adapter_settings_in(folder: Path) -> Mapping[str, Any] | None:
    """Read `adapter_config.json`; returns None if the folder contains a full model.

    Raises:
        ModelError: if it contains neither.
    """
    if not folder.is_dir():  # a device or FIFO too
        raise ModelError(f"{folder} is not a folder. Name the folder that contains the model.")
    if (folder / "adapter_config.json").is_file():
        return read_json(folder / "adapter_config.json", ModelError)
    checkpoints = [path for path in list_checkpoints(folder) if _is_model_folder(path)]
    has_weights = any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES)
    if (folder / "config.json").is_file() and (has_weights or not checkpoints):
        return None
    if checkpoints:
        names = ", ".join(path.name for path in checkpoints)
        raise ModelError(
            f"{folder}: no final model (the run has not finished), but checkpoints: {names}. Name one of them, for "
            f"example {checkpoints[-1]}"
        )
    files = ", ".join(sorted(path.name for path in folder.iterdir())[:_MAX_LISTED_FILES]) or "nothing"
    raise ModelError(
        f"{folder}: no model in this folder (neither config.json nor adapter_config.json); it contains: {files}."
    )


def _is_model_folder(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def _adapter_settings_on_hub(name: str) -> Mapping[str, Any] | None:
    with readable_loading_errors("model", name):
        path = find_adapter_config_file(name)
    return read_json(path, ModelError) if path is not None else None


def _base_of(settings: Mapping[str, Any], folder: Path) -> str:
    """Return the base model that adapters name.

    Raises:
        ModelError: if they name none, or a folder that does not exist.
    """
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder}: the adapters do not name their base model. Name it: --base BASE.")
    if Path(base).is_dir():
        return base
    if Path(base).name == "base_model":  # saved beside the adapters (of a GGUF file), which may have been moved
        for parent in (folder, folder.absolute().parent):
            if (parent / "base_model").is_dir():
                return str(parent / "base_model")
    if looks_like_a_path(base):
        raise ModelError(
            f"{folder}: the adapters were trained on {base}, which does not exist. Name the base model: --base BASE."
        )
    return base
