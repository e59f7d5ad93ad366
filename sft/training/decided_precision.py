"""The dtypes that a run computes in: decided once for all processes, and kept when the run is resumed."""

from __future__ import annotations

import logging

from sft.checkpointing.resume_point import ResumePoint
from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import SFTConfig
from sft.modeling.precision import has_bfloat16, resolve_precision
from sft.processes.agreement import agree_on_smallest
from sft.reporting.log_lines import MIXED_NAMES, mixed_text

logger = logging.getLogger("sft.train")
_WEIGHTS = ("float32", "bfloat16", "float16")


def decide_precision(config: SFTConfig, context: DistributedContext, resume: ResumePoint | None) -> Precision:
    """The types to compute in: as set, as in the resumed run, or what suits the devices of all processes.

    Every process must call it.

    Args:
        config: the whole configuration.
        context: this process; a dry run is one process.
        resume: the checkpoint to resume from.

    Raises:
        ConfigError: if a setting asks for a type that the devices lack, or for another one than the checkpoint's; if
            the devices lack the checkpoint's.
    """
    all_have_bfloat16 = bool(agree_on_smallest(has_bfloat16(context.device), context))
    precision = resolve_precision(
        config.model,
        config.training,
        context,
        adapters_only=config.lora is not None,
        all_have_bfloat16=all_have_bfloat16,
    )
    if resume is None:
        return precision
    saved = resume.manifest.get("precision")
    if saved is None:
        logger.info(
            "%s does not record the precision that it was trained in: this run continues with %s weights, %s.",
            resume.name,
            precision.weights,
            mixed_text(precision),
        )
        return precision
    kept = Precision(weights=saved["weights"], mixed=saved["mixed"], reason=f"as in {resume.name}")
    _check_settings(config, kept, resume.name)
    _check_device(kept, resume.name, context.device, has_bf16=all_have_bfloat16)
    return precision if kept == precision else kept


def _check_settings(config: SFTConfig, kept: Precision, name: str) -> None:
    """Refuses a setting that asks for another type.

    Raises:
        ConfigError: a line for each of these settings.
    """
    training, problems = config.training, []
    for key, wanted in (("bf16", training.bf16), ("fp16", training.fp16)):
        if wanted != "auto" and wanted != (kept.mixed == key):
            problems.append(_refusal(key, str(wanted).lower(), f"with {MIXED_NAMES.get(kept.mixed, kept.mixed)}", name))
    if config.model.dtype not in ("auto", kept.weights):
        problems.append(_refusal("dtype", config.model.dtype, f"with {kept.weights} weights", name))
    if problems:
        raise ConfigError(*problems)


def _refusal(key: str, wanted: str, before: str, name: str) -> str:
    return (
        f"{key}: {name} was trained {before}, and now {key} is {wanted}: the run would continue in another precision. "
        f"Write {key}: auto to keep the checkpoint's, or omit resume_from_checkpoint."
    )


def _check_device(kept: Precision, name: str, device: str, *, has_bf16: bool) -> None:
    """Refuses a checkpoint whose types this run cannot compute in.

    Raises:
        ConfigError: naming `resume_from_checkpoint`.
    """
    on_gpu = device.startswith("cuda")
    reason = None
    if kept.mixed not in MIXED_NAMES or kept.weights not in _WEIGHTS:
        reason = "which this version does not know"
    elif kept.mixed == "fp16" and not on_gpu:
        reason = f"which needs a GPU, and this run is on {device}"
    elif kept.mixed == "bf16" and on_gpu and not has_bf16:
        reason = "and this GPU has no bfloat16"
    if reason is not None:
        raise ConfigError(
            f"resume_from_checkpoint: {name} was trained with {kept.weights} weights and "
            f"{MIXED_NAMES.get(kept.mixed, kept.mixed)}, {reason}. Resume on a device that has it; to train the saved "
            "weights in another precision, set model_name_or_path to the checkpoint's folder and omit "
            "resume_from_checkpoint."
        )
