"""What to change where the estimated memory does not fit, the cheapest change first.

Each change is tried with the same arithmetic as the estimate (`sft.batching.memory`). What costs least comes first: a
smaller micro-batch with more accumulation (the same training), gradient checkpointing (the same training, about a
quarter slower), both; then other training: an optimizer in 8 bits, adapters, adapters on 4-bit weights; a shorter
`max_seq_length` only where nothing else fits, since it truncates the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from sft.batching.memory import MemoryFacts, estimate_memory
from sft.common.machine_records import MemoryAdvice

LORA_RANK = 16
_LENGTH_STEP = 64


def advise(facts: MemoryFacts, budget_bytes: int) -> tuple[MemoryAdvice, ...]:
    """List the changes that would fit, the cheapest first; where none does, the one that needs the least memory.

    Args:
        facts: the run as it is configured.
        budget_bytes: what a device may hold.

    Returns:
        Nothing if the run fits without changes.
    """
    if estimate_memory(facts).total_bytes <= budget_bytes:
        return ()
    found = list(_same_training(facts, budget_bytes))
    for name, other in _other_training(facts):
        variants = ((name, other), *((f"{name}, {words}", lighter) for words, lighter in _lighter(other)))
        found += _first_that_fits(variants, budget_bytes)
    if found:
        return tuple(found)
    lightest = [_lightest(other) for other in (facts, *(other for _, other in _other_training(facts)))]
    shorter = (_shortest_cut(variant, budget_bytes) for variant in lightest)
    return next(
        ((advice,) for advice in shorter if advice is not None),
        (_least(lightest),),
    )


def with_adapters(facts: MemoryFacts, *, rank: int = LORA_RANK) -> MemoryFacts:
    """The same run with LoRA on all linear layers (Hu et al., 2022): `rank * (in + out)` parameters for each of them.

    Counted for the seven linear layers of a gated decoder, keys and values as wide as queries, which is slightly high
    for grouped-query attention, and for stacked experts. On a GPU frozen weights are held in 16 bits, as `dtype: auto`
    does.
    """
    size = facts.footprint
    hidden, inner = size.hidden_size, size.intermediate_size or 4 * size.hidden_size
    adapters = rank * (size.num_layers * (8 * hidden + 3 * (hidden + inner)) + size.stacked_rank_parameters)
    halves = facts.device.startswith("cuda") and facts.weights == "float32"
    return replace(
        facts,
        weights="bfloat16" if halves else facts.weights,
        footprint=replace(
            size,
            num_parameters=size.num_parameters + adapters,
            num_trainable_parameters=adapters,
            weight_bytes=size.weight_bytes // (2 if halves else 1) + 4 * adapters,
            adapted_stack_bytes=size.num_stacked_parameters * (2 if halves else facts.element_bytes),
        ),
    )


def with_4bit_weights(facts: MemoryFacts) -> MemoryFacts:
    """The same run with the layers' frozen weights in 4 bits, all others in float32 (Dettmers et al., 2023, QLoRA).

    Embeddings are never in 4 bits, which limits the count where grouped-query attention makes layers smaller. Nor are
    stacked experts, which stay in 16 bits under autocast.
    """
    size = facts.footprint
    hidden, inner = size.hidden_size, size.intermediate_size or 4 * size.hidden_size
    embeddings = size.vocab_size * hidden + size.num_lookup_parameters
    frozen = size.num_parameters - (size.num_trainable_parameters if facts.has_adapters else 0)
    stacked = size.num_stacked_parameters
    in_4_bits = min(size.num_layers * (4 * hidden**2 + 3 * hidden * inner), max(frozen - embeddings - stacked, 0))
    others = max(size.num_parameters - in_4_bits - stacked, 0)
    stack_bytes = stacked * (2 if facts.is_mixed else 4)
    return replace(
        facts,
        footprint=replace(
            size,
            weight_bytes=4 * others + stack_bytes + in_4_bits // 2,
            num_4bit_parameters=in_4_bits,
            adapted_stack_bytes=stack_bytes if size.adapted_stack_bytes else 0,
        ),
    )


def _lighter(facts: MemoryFacts) -> Iterator[tuple[str, MemoryFacts]]:
    """The same training in less memory: a smaller micro-batch, gradient checkpointing, both; in falling order."""
    smaller = list(_smaller_batches(facts))
    yield from smaller
    if facts.gradient_checkpointing:
        return
    checkpointing = "gradient_checkpointing: true"
    yield checkpointing, replace(facts, gradient_checkpointing=True)
    for words, variant in smaller:
        yield f"{words}, {checkpointing}", replace(variant, gradient_checkpointing=True)


def _same_training(facts: MemoryFacts, budget_bytes: int) -> list[MemoryAdvice]:
    """A smaller micro-batch and gradient checkpointing; both together only where neither is enough."""
    lighter = list(_lighter(facts))
    smaller = [pair for pair in lighter if pair[1].gradient_checkpointing == facts.gradient_checkpointing]
    others = lighter[len(smaller) :]
    alone = _first_that_fits(smaller, budget_bytes) + _first_that_fits(others[:1], budget_bytes)
    return alone or _first_that_fits(others[1:], budget_bytes)


def _first_that_fits(variants: Iterable[tuple[str, MemoryFacts]], budget_bytes: int) -> list[MemoryAdvice]:
    """One or none: the later ones need even less, and cost more."""
    fitting = (_advice(words, variant, fits=True) for words, variant in variants if _fits(variant, budget_bytes))
    return list(islice(fitting, 1))


def _smaller_batches(facts: MemoryFacts) -> Iterator[tuple[str, MemoryFacts]]:
    rows = facts.per_device_train_batch_size
    for fewer in range(rows - 1, 0, -1):
        if rows % fewer == 0:  # so that a step keeps its number of rows
            steps = facts.gradient_accumulation_steps * rows // fewer
            yield (
                f"per_device_train_batch_size: {fewer}, gradient_accumulation_steps: {steps}",
                replace(
                    facts,
                    per_device_train_batch_size=fewer,
                    gradient_accumulation_steps=steps,
                    tokens=max(facts.tokens * fewer // rows, facts.longest_row),
                    documents=-(-facts.documents * fewer // rows),
                ),
            )


def _other_training(facts: MemoryFacts) -> Iterator[tuple[str, MemoryFacts]]:
    is_sharded = facts.sharded_over > 1  # FSDP supports neither 8-bit optimizers nor 4-bit weights
    can_be_sharded = facts.world_size > 1 and "8bit" not in facts.optimizer and not facts.footprint.num_4bit_parameters
    if can_be_sharded and not is_sharded:
        yield "fsdp: {}", replace(facts, sharded_over=facts.world_size)
    if not facts.has_adapters:
        if "8bit" not in facts.optimizer and not is_sharded:
            yield "optim: adamw_bnb_8bit", replace(facts, optimizer="adamw_bnb_8bit")
        lora = with_adapters(facts)
        yield f"lora_config (r: {LORA_RANK}, all-linear)", lora
        if not is_sharded:
            yield "lora_config and quantization_config (load_in_4bit)", with_4bit_weights(lora)
    elif not facts.footprint.num_4bit_parameters and not is_sharded:
        yield "quantization_config (load_in_4bit)", with_4bit_weights(facts)


def _lightest(facts: MemoryFacts) -> MemoryFacts:
    return min(
        (facts, *(variant for _, variant in _lighter(facts))), key=lambda each: estimate_memory(each).total_bytes
    )


def _shortest_cut(facts: MemoryFacts, budget_bytes: int) -> MemoryAdvice | None:
    """The largest `max_seq_length` that fits, if any does."""
    for length in range((facts.longest_row - 1) // _LENGTH_STEP * _LENGTH_STEP, 0, -_LENGTH_STEP):
        tokens = facts.tokens * length // facts.longest_row
        variant = replace(facts, tokens=tokens, longest_row=length)
        if _fits(variant, budget_bytes):
            return _advice(f"{_settings_text(facts)}, max_seq_length: {length}", variant, fits=True)
    return None


def _least(variants: list[MemoryFacts]) -> MemoryAdvice:
    least = min(variants, key=lambda each: estimate_memory(each).total_bytes)
    return _advice(_settings_text(least), least, fits=False)


def _settings_text(facts: MemoryFacts) -> str:
    """All settings of a variant, as configuration keys."""
    words = []
    if facts.has_adapters:
        words.append(f"lora_config (r: {LORA_RANK}, all-linear)")
    if facts.footprint.num_4bit_parameters:
        words.append("quantization_config (load_in_4bit)")
    elif not facts.has_adapters:
        words.append(f"optim: {facts.optimizer}")
    if facts.sharded_over > 1:
        words.append("fsdp: {}")
    if facts.per_device_train_batch_size:
        words.append(f"per_device_train_batch_size: {facts.per_device_train_batch_size}")
        words.append(f"gradient_accumulation_steps: {facts.gradient_accumulation_steps}")
    if facts.gradient_checkpointing:
        words.append("gradient_checkpointing: true")
    return ", ".join(words)


def _fits(facts: MemoryFacts, budget_bytes: int) -> bool:
    return estimate_memory(facts).total_bytes <= budget_bytes


def _advice(change: str, facts: MemoryFacts, *, fits: bool) -> MemoryAdvice:
    return MemoryAdvice(change=change, needed_bytes=estimate_memory(facts).total_bytes, fits=fits)
