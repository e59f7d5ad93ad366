"""What the trials on a model decide about rows and logits: the same on all processes, and kept on resume."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sft.checkpointing.resume_point import ResumePoint
from sft.configuration.schema import SFTConfig
from sft.modeling.document_attention import attention_of

logger = logging.getLogger("sft.train")
TRIED = "tried on the model"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutFindings:
    """What was found out about a model with a few tokens. Checkpoints keep it under `trials`."""

    is_padding_free: bool
    obstacle: str | None
    """Why rows are padded, as a clause; None if they are not, or if padding was requested."""
    shares_prefixes: bool
    """Whether shared leading tokens are computed once."""
    uses_output_layer: bool
    """Whether the loss is computed at the output layer's input, instead of from the model's logits."""
    kernel_obstacle: str | None = None
    """Why torch's kernel for packed rows is not used on a GPU, as a clause: their documents are attended one by one, or
    rows are padded. None where it is used, and on CPU."""
    attention: str
    """The model's own attention, which transformers chose or the settings name."""
    sharing_obstacle: str | None = None
    """Why shared leading tokens are computed for each row, as a clause; None if they are not, or if that was set."""
    skips_padding_mask: bool = False
    """Whether padded rows are computed without a mask for the padding."""
    mixers_by_document: Sequence[str] = ()
    """The modules of a packed row's layers that run document by document, by their names in the model."""
    numbers_documents: bool = False
    """Whether kernels of mixers are passed the number of each token's document (`seq_idx`)."""
    compiles_layers: bool | None = None
    """Whether the layers are compiled; None in older checkpoints, and before it is decided."""
    reason: str = TRIED
    """Where it comes from: trials, or the checkpoint that the run resumes from."""

    @property
    def attends_one_by_one(self) -> bool:
        """Whether documents of a packed row are attended one by one on a GPU, without torch's kernel."""
        return self.is_padding_free and self.kernel_obstacle is not None


def saved_findings(resume: ResumePoint | None, config: SFTConfig) -> LayoutFindings | None:
    """What the resumed run found out; None where there is none, or where the settings that it depends on changed.

    Args:
        resume: the checkpoint to resume from.
        config: the whole configuration.
    """
    if resume is None:
        return None
    saved, before = resume.manifest.get("trials"), resume.manifest.get("configuration") or {}
    now = {"padding_free": config.training.padding_free, "attn_implementation": config.model.attn_implementation}
    if any(key in before and before[key] != value for key, value in now.items()):
        return None  # the changed setting is logged and takes effect
    if saved is None:
        logger.info(
            "%s does not record what was tried on the model (padding-free batches, shared leading tokens, output "
            "layer): it is tried again.",
            resume.name,
        )
        return None
    found = LayoutFindings(**{field.name: saved.get(field.name) for field in fields(LayoutFindings)})
    found = replace(found, mixers_by_document=tuple(found.mixers_by_document or ()))
    found = replace(found, numbers_documents=bool(found.numbers_documents))
    # Where the setting was off, nothing was found out.
    shares_prefixes = found.shares_prefixes or before.get("share_prefixes") is False
    return replace(found, shares_prefixes=shares_prefixes, reason=f"as in {resume.name}")


def keep_findings(found: LayoutFindings, kept: LayoutFindings | None) -> LayoutFindings:
    """What a resumed run uses of what was found now: nothing that the earlier run did not use.

    What the earlier run used and this one cannot is logged in one line.

    Args:
        found: now.
        kept: of the earlier run; None for a new one.
    """
    if kept is None:
        return found
    lost = []
    if kept.is_padding_free and not found.is_padding_free:
        lost.append(f"padding-free batches: {found.obstacle}")
    elif kept.shares_prefixes and found.sharing_obstacle is not None:
        lost.append(f"shared leading tokens, computed once: {found.sharing_obstacle}")
    if kept.is_padding_free and found.kernel_obstacle and not kept.kernel_obstacle:
        lost.append(f"the kernel for packed rows: {found.kernel_obstacle}")
    if kept.numbers_documents and found.is_padding_free and not found.numbers_documents:
        lost.append("kernels of mixers that are told the documents: their packages are gone, or others")
    if kept.uses_output_layer and not found.uses_output_layer:
        lost.append("the loss at the output layer: its output no longer equals the model's logits")
    if kept.skips_padding_mask and not (found.skips_padding_mask or found.is_padding_free):
        lost.append("padded rows without a mask for the padding: on this model, as it runs here, the trial of it fails")
    if lost:
        logger.info("No longer %s: %s. Sums may be rounded differently.", kept.reason, "; ".join(lost))
    return replace(
        found,
        shares_prefixes=kept.shares_prefixes and found.shares_prefixes,
        sharing_obstacle=found.sharing_obstacle or (kept.sharing_obstacle if found.shares_prefixes else None),
        uses_output_layer=kept.uses_output_layer and found.uses_output_layer,
        skips_padding_mask=bool(kept.skips_padding_mask) and found.skips_padding_mask,
        reason=kept.reason if not lost else TRIED,
    )


def restore_attention(model: Any, kept: LayoutFindings | None, requested: str | None) -> None:
    """Selects the attention of the resumed run where transformers would choose another one now.

    Args:
        model: loaded.
        kept: what the resumed run recorded.
        requested: `attn_implementation`.
    """
    chosen = attention_of(model)
    if kept is None or requested is not None or kept.attention == chosen:
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        base.set_attn_implementation(kept.attention)
    except (ValueError, ImportError, RuntimeError):
        outcome = f"is not available here: {chosen} is used, and sums may be rounded differently"
    else:
        outcome = f"is used, where transformers would choose {chosen} now"
    logger.info("attn_implementation: %s (%s) %s.", kept.attention, kept.reason, outcome)
