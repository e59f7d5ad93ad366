"""The door to models: precision, tokenizer, the model with its adapters, and saving.

`load_model` shows the order of the steps. Behind it, in `sft/modeling/`: `loading.py` (files, quantization),
`adapters.py`, `fitting.py` (positions, vocabulary, special tokens), `precision.py`, `saving.py`, and the modules that
compute: attention, loss, metrics, sharding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import set_seed

from sft.checkpointing.resume_point import ResumePoint
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import SFTConfig
from sft.modeling.fitting import fit_to_tokenizer
from sft.modeling.loading import load_pretrained_model
from sft.modeling.precision import resolve_precision
from sft.modeling.published_quantization import check_quantized_weights_can_train
from sft.modeling.saving import save_final_model
from sft.modeling.text_path import freeze_unused_modules
from sft.modeling.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load_model", "load_tokenizer", "resolve_precision", "save_final_model"]


def load_model(
    config: SFTConfig,
    tokenizer: "PreTrainedTokenizerBase",
    precision: Precision,
    context: DistributedContext,
    *,
    resume: ResumePoint | None = None,
) -> "PreTrainedModel":
    """Load the model, quantize it, add adapters, and fit it to the tokenizer, as configured.

    Args:
        config: the whole configuration.
        tokenizer: as `load_tokenizer` returns it.
        precision: as `resolve_precision` returns it.
        context: this process; a quantized model is loaded onto its device.
        resume: the checkpoint to resume from: adapters are on the same modules as its own.

    Raises:
        ModelError: if the model is no causal language model or cannot be loaded, an adapter's target is not in it, or
            rows are longer than its learned positions.
        ConfigError: if such adapters cannot be added to this model.
    """
    is_to_be_sharded = config.fsdp is not None and context.world_size > 1
    set_seed(config.training.seed)  # adapters and new embeddings start from random numbers
    model = load_pretrained_model(
        config.model,
        config.lora,
        config.quantization,
        precision,
        context,
        gradient_checkpointing=config.training.gradient_checkpointing,
        adapters_from=resume.path if resume is not None else None,
        is_to_be_sharded=is_to_be_sharded,
    )
    name, has_adapters = config.model.model_name_or_path, config.lora is not None
    check_quantized_weights_can_train(model, name, has_adapters=has_adapters, is_to_be_sharded=is_to_be_sharded)
    if not has_adapters:
        freeze_unused_modules(model)
    fit_to_tokenizer(model, tokenizer, config.data.max_seq_length, adapters_only=has_adapters)
    return model
