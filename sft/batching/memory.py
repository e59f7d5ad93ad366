"""What training holds in memory at its fullest, by arithmetic, before anything is tried.

Shapes: `N` tokens of a micro-batch, `T` tokens of its longest row, `V` vocabulary, `h` hidden size, `I` intermediate
size of the feed-forward block. The counts are those of a decoder with RMS norms and a gated feed-forward block (four
tensors of width `I`: gate, up, activation, product). GPT-2's GELU, written out in Python, keeps about as many; a plain
block with a fused GELU keeps two, so for such a model the estimate is high. Keys and values count as wide as queries,
which is a little high where heads share them.

Against the peak resident set on CPU (float32, no accumulation, the heap as a run sets it up) it was held by
`benchmarks/bench_memory.py`; the table is in `benchmarks/RESULTS.md`. The heap's holes are measured there, not derived.
Not measured: GPUs, mixed precision, several processes, gradient accumulation.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from sft.common.machine_records import MemoryEstimate
from sft.common.run_records import ModelFootprint

_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_KEPT_BYTES = {
    # (mixed precision, 16-bit weights, adapters): bytes a token and layer, for each of h and for each of I
    (False, False, False): (40, 16),
    (False, False, True): (32, 16),
    (False, True, False): (24, 8),
    (False, True, True): (40, 10),
    (True, False, False): (34, 8),
    (True, False, True): (28, 8),
    (True, True, False): (24, 8),
    (True, True, True): (28, 8),
}
"""What a layer keeps for its backward pass. Counted with autograd's saved-tensor hooks on SmolLM2-135M: 3 to 6 % above
what those found, as heads share keys and values there; GPT-2 keeps 16 % more than this in float32, in bf16 the same.

In float32: two norms keep input, normed and output (6h), attention its queries, keys, values and output (4h). A norm is
computed in float32 whatever the type; under autocast each linear layer keeps its own cast copy of its input. Frozen
weights need no input of their own, but adapters beside them do: they save the weights' part, hardly any activations.
"""

_BUCKET_BYTES = 2**26
"""Gradients are reduced over processes in flat copies of so much, one at a time."""
_HOLES = {"all": (0.45, 0.45), "adapters": (0.9, 0.75), "4-bit": (0.9 * 4 / 3, 0.75 * 4 / 3)}
"""Holes in glibc's heap (2.36) over what layers keep without checkpointing: without and with it. Not derived but
measured on SmolLM2-135M at 256 to 1,024 tokens: all weights 0.4 to 0.6; adapters, whose layers make three tensors on
the way to one that is kept, 0.86 to 0.93, with checkpointing 0.73 to 0.77. On 4-bit weights peft copies the layer's
product too: four in place of three. The same with `M_MMAP_THRESHOLD` at 4 and 32 MiB, and with a `M_TOP_PAD` of 1 MiB;
none at a threshold of 256 KiB, where each large block comes from the system anew."""
_CPU_LIBRARY_BYTES = 2**24
"""Buffers of the matrix library, which it keeps."""
_CUDA_BYTES = 3 * 2**28
"""Half a GiB to one GiB of context and workspaces; not measured."""

_STATES = (
    ("ademamix", 3.0),
    ("grokadamw", 3.0),
    ("schedule_free_sgd", 1.0),
    ("sgd", 0.0),
    ("lomo", 0.0),
    # A row and a column of sums for each matrix.
    ("adafactor", 0.01),
    ("lion", 1.0),
    ("rmsprop", 1.0),
    ("adagrad", 1.0),
)
"""Part of an optimizer's name -> numbers that it keeps for each trained parameter. Any other counts as AdamW: two."""


def estimate_memory(
    footprint: ModelFootprint,
    *,
    tokens: int,
    longest_row: int,
    weights: str,
    mixed: str,
    optimizer: str,
    gradient_checkpointing: bool,
    attention: str = "sdpa",
    supervised_share: float = 1.0,
    logits_chunk_bytes: int | None = None,
    device: str = "cuda",
    accumulates: bool = True,
    world_size: int = 1,
) -> MemoryEstimate:
    """What one device holds at its fullest, in bytes.

    The parts in use are added up as if all stood at once, which is so with gradient accumulation. Without it gradients
    come when activations go; on CPU they then lie where the heap would have holes (see `_heap_slack_bytes`).

    Args:
        footprint: the model's size. Fewer trained parameters than parameters means adapters on frozen weights.
        tokens: `N`, of the fullest micro-batch, padding included.
        longest_row: `T`.
        weights: type of the weights in memory: `float32`, `bfloat16`, `float16`.
        mixed: autocast: `bf16`, `fp16` or `no`.
        optimizer: a name that `optim` takes.
        gradient_checkpointing: activations are computed again, layer by layer, in the backward pass.
        attention: `eager` keeps every head's scores, `[B, heads, T, T]`; fused attention does not (Dao et al., 2022).
        supervised_share: share of the positions that are trained.
        logits_chunk_bytes: the output layer's scores are made a few at a time, which take so much; None: all at once.
        device: `cpu`, or the name of a GPU.
        accumulates: a step has several micro-batches.
        world_size: processes that reduce gradients with each other.
    """
    element, trained = _ELEMENT_BYTES[weights], footprint.num_trainable_parameters
    has_adapters = trained < footprint.num_parameters
    # Adapters are float32 whatever they stand on (peft's `autocast_adapter_dtype`).
    trained_element = 4 if has_adapters else element
    kind, keeps_scores = (mixed != "no", element == 2, has_adapters), attention == "eager"
    activations = partial(_activation_bytes, footprint, tokens, longest_row, kind=kind, keeps_scores=keeps_scores)
    gradients = trained * trained_element
    slack = _CUDA_BYTES
    if device == "cpu":
        # The heap also keeps what weights held before they were quantized to 4 bits.
        made = activations(gradient_checkpointing=False)
        holes = made * _HOLES[_kind(footprint)][gradient_checkpointing]
        # Two chunks of scores beside the one in work: chosen by the measured peaks of a model with a small body.
        holes += 2 * min(logits_chunk_bytes or 0, 4 * tokens * supervised_share * footprint.vocab_size)
        slack = _heap_slack_bytes(holes, 0 if accumulates else gradients) + element * footprint.num_4bit_parameters
    return MemoryEstimate(
        weights_bytes=_weights_bytes(footprint, element, mixed, has_adapters=has_adapters),
        gradients_bytes=gradients,
        optimizer_bytes=round(trained * optimizer_bytes(optimizer, trained_element)),
        activations_bytes=activations(gradient_checkpointing=gradient_checkpointing),
        logits_bytes=_logits_bytes(footprint, tokens * supervised_share, element, mixed, logits_chunk_bytes),
        slack_bytes=slack + (_BUCKET_BYTES if world_size > 1 else 0),
    )


def sharded_over(
    estimate: MemoryEstimate,
    footprint: ModelFootprint,
    count: int,
    *,
    weights: str,
    mixed: str,
    reshard_after_forward: bool = True,
) -> MemoryEstimate:
    """The same where FSDP spreads weights, gradients and optimizer over `count` devices; by arithmetic, not measured.

    At its fullest a device has its parts, the output layer gathered, and of the layers the one in work and the one that
    comes next, in the type that is computed in. The gradient of one of them is whole, and once more in float32 on its
    way to the sum.

    Args:
        estimate: of `estimate_memory`.
        footprint, weights, mixed: as there.
        count: devices.
        reshard_after_forward: False keeps all layers gathered until their backward pass.
    """
    compute = 2 if mixed != "no" else _ELEMENT_BYTES[weights]
    head = footprint.vocab_size * footprint.hidden_size
    layer = (footprint.num_parameters - head - footprint.num_lookup_parameters) // footprint.num_layers
    gathered = head + 2 * layer if reshard_after_forward else footprint.num_parameters
    trained_share = footprint.num_trainable_parameters / footprint.num_parameters
    in_work = round(trained_share * max(layer, head) * (compute + 4))
    return replace(
        estimate,
        weights_bytes=footprint.weight_bytes // count + gathered * compute,
        gradients_bytes=estimate.gradients_bytes // count + in_work,
        optimizer_bytes=estimate.optimizer_bytes // count,
    )


def optimizer_bytes(optimizer: str, element_bytes: int = 4) -> float:
    """Bytes of state that an optimizer keeps for each trained parameter of `element_bytes`.

    AdamW: two moments of the parameter's type (Loshchilov & Hutter, 2019). In 8 bits a byte each, and the scales of
    its blocks, which do not count (Dettmers et al., 2022). Plain SGD, as `optim: sgd` sets it up, keeps nothing.
    """
    states = next((count for part, count in _STATES if part in optimizer), 2.0)
    if "8bit" in optimizer:
        return states
    return states * (0.5 if "4bit" in optimizer else element_bytes)


def _activation_bytes(
    footprint: ModelFootprint,
    tokens: int,
    longest_row: int,
    *,
    kind: tuple[bool, bool, bool],
    keeps_scores: bool,
    gradient_checkpointing: bool,
) -> int:
    """What all layers keep.

    Korthikanti et al. (2022, Reducing Activation Recomputation in Large Transformer Models, section 4) count
    `34*h + 5*heads*T` bytes a token and layer for a GPT in 16 bits with dropout, and `2*h` with checkpointing, to which
    the one layer in work adds its own.
    """
    is_mixed, is_16_bit, _ = kind
    per_hidden, per_intermediate = _KEPT_BYTES[kind]
    intermediate_size = footprint.intermediate_size or 4 * footprint.hidden_size
    layer = tokens * (per_hidden * footprint.hidden_size + per_intermediate * intermediate_size)
    if keeps_scores:
        # The softmax is float32; in 16 bits the product with the values keeps a cast copy of it.
        score_bytes = 6 if is_mixed or is_16_bit else 4
        layer += score_bytes * footprint.num_attention_heads * tokens * longest_row
    if not gradient_checkpointing:
        return footprint.num_layers * layer
    # What runs from layer to layer has the type of the weights, under autocast too.
    between_layers = tokens * footprint.hidden_size * (2 if is_16_bit else 4)
    return footprint.num_layers * between_layers + layer


def _logits_bytes(
    footprint: ModelFootprint, supervised: float, element: int, mixed: str, chunk_bytes: int | None
) -> int:
    """The output layer's scores of the supervised positions, and what the loss makes of them.

    Made a few positions at a time, they count as the chunk in work (scores and their gradient) and what is kept for the
    backward pass: the gradients of the hidden states, and of the output layer's weights where these are trained. Else
    all scores and their gradient, in the type of the weights (float32 under autocast, which accelerate casts back).
    """
    scores = supervised * footprint.vocab_size
    in_16_bits = element == 2 or mixed != "no"
    if chunk_bytes is None:
        return round(2 * scores * (2 if element == 2 and mixed == "no" else 4))
    kept = 4 * supervised * footprint.hidden_size
    if footprint.num_trainable_parameters == footprint.num_parameters:
        kept += 4 * footprint.vocab_size * footprint.hidden_size
    # Beside scores in float32, which become their own gradient, stand those in 16 bits, or the gradient in 16 bits.
    return round(kept + min(chunk_bytes, 4 * scores) * (1.5 if in_16_bits else 1))


def _weights_bytes(footprint: ModelFootprint, element: int, mixed: str, *, has_adapters: bool) -> int:
    """The weights, with what computing in another type makes of them."""
    is_mixed = mixed != "no"
    trained = footprint.num_trainable_parameters
    # Autocast keeps a 16-bit copy of each float32 weight until the backward pass is over.
    num_float32 = footprint.num_parameters if element == 4 else trained if has_adapters else 0
    if footprint.num_4bit_parameters:
        num_float32 = footprint.num_parameters - footprint.num_4bit_parameters
    beside = _bytes_beside_4bit_weights(footprint, 4 if element == 4 and not is_mixed else 2)
    return footprint.weight_bytes + (2 * num_float32 if is_mixed else 0) + beside


def _bytes_beside_4bit_weights(footprint: ModelFootprint, compute_bytes: int) -> int:
    """Scales of 4-bit weights, and the one matrix that is de-quantized at a time, forward and backward alike.

    A scale for each 64 weights, itself in 8 bits with a float32 for each 256 of them (Dettmers et al., 2023, QLoRA,
    section 3).
    """
    in_4_bits = footprint.num_4bit_parameters
    if not in_4_bits:
        return 0
    scales = in_4_bits // 64 + in_4_bits // 64 // 256 * 4
    widest = footprint.hidden_size * (footprint.intermediate_size or 4 * footprint.hidden_size)
    return scales + compute_bytes * widest


def _kind(footprint: ModelFootprint) -> str:
    has_adapters = footprint.num_trainable_parameters < footprint.num_parameters
    return "4-bit" if footprint.num_4bit_parameters else "adapters" if has_adapters else "all"


def _heap_slack_bytes(holes: float, gradients_in_holes: int) -> int:
    """What glibc's heap and the libraries hold beyond what is in use.

    The likely cause, not proven here: glibc asks its free list for more than an aligned block needs, and cuts off what
    is over, so a freed block does not serve for the next one of the same size (sourceware.org bug 14581).
    Beside what a layer keeps lie holes of what it
    made on the way: with checkpointing too, since its own tensors are freed and the next layer's take new memory.
    Gradients that come as activations go lie in these holes.
    """
    return _CPU_LIBRARY_BYTES + max(round(holes) - gradients_in_holes, 0)
