"""What training holds in memory at its peak, by arithmetic, before anything is run.

Shapes: `N` tokens of a micro-batch, `T` tokens of its longest row, `V` vocabulary, `h` hidden size, `I` intermediate
size of the feed-forward block. The counts are those of a decoder with RMS norms and a gated feed-forward block (four
tensors of width `I`: gate, up, activation, product). GPT-2's GELU, which is written in Python, keeps about as many; a
plain block with a fused GELU keeps two, so the estimate is high for such a model. Keys and values count as wide as
queries, which is slightly high for grouped-query attention.

`benchmarks/bench_memory.py` compares the estimate with the peak resident set on CPU (float32, no accumulation, the heap
configured as in a run); `benchmarks/RESULTS.md` has the table. The fragmentation of the heap is measured there, not
derived. Of mixed precision, bfloat16 on CPU was measured with two small models. For GPUs, the estimate was compared
with what torch's allocator reserves on fake devices (`tests/gpu_path/test_predicted_memory.py`). Not measured: real
GPUs, several processes and gradient accumulation on CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sft.batching.optimizer_state import optimizer_bytes
from sft.common.machine_records import MemoryEstimate
from sft.common.run_records import ModelFootprint

_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_KEPT_BYTES = {
    # (mixed precision, 16-bit weights, adapters): bytes per token and layer, for each of h and for each of I
    (False, False, False): (40, 16),
    (False, False, True): (32, 16),
    (False, True, False): (24, 8),
    (False, True, True): (40, 10),
    (True, False, False): (34, 8),
    (True, False, True): (28, 8),
    (True, True, False): (24, 8),
    (True, True, True): (20, 8),
}
"""What a layer keeps for its backward pass. Counted with autograd's saved-tensor hooks on SmolLM2-135M: 3 to 6 % above
what those found, as its heads share keys and values; GPT-2 keeps 16 % more than this in float32, in bf16 the same.

In float32: two norms keep input, normed and output (6h), attention its queries, keys, values and output (4h). A norm is
computed in float32 whatever the type; under autocast each linear layer keeps its own cast copy of its input. Frozen
weights do not need their input for the backward pass, but adapters beside them do: adapters save the weights' part and
hardly any activations. Adapters on 16-bit weights take the base's input as it is (see `sft.modeling.input_casts`), and
layers that share an input keep one copy.
"""

_ROWS_BESIDE_DOCUMENT = 128
_BUCKET_BYTES = 2**26
"""Gradients are reduced over processes in flat copies of this size, one at a time."""
_FRAGMENTATION = {"all": (0.45, 0.45), "adapters": (0.9, 0.75), "4-bit": (0.9 * 4 / 3, 0.75 * 4 / 3)}
"""Fragmentation of glibc's heap (2.36) as a share of what layers keep without checkpointing: (without, with it).

Not derived but measured on SmolLM2-135M at 256 to 1,024 tokens: all weights 0.4 to 0.6; adapters, whose layers make
three temporary tensors for one that is kept, 0.86 to 0.93, with checkpointing 0.73 to 0.77. On 4-bit weights peft also
copies the layer's product: four temporaries instead of three. The same with `M_MMAP_THRESHOLD` at 4 and 32 MiB, and
with an `M_TOP_PAD` of 1 MiB; none at a threshold of 256 KiB, where each large block is mapped again."""
_CPU_LIBRARY_BYTES = 2**24
"""Buffers that the matrix library keeps."""
_CUDA_BYTES = 2**29 + 2**28
"""The context, about half a GiB that no allocator counts (not measured), and a quarter for workspaces and what torch's
allocator reserves beyond what is in use.

The latter was measured on fake devices (benchmarks/RESULTS.md): with expandable segments, the default, up to 0.1 GiB,
with checkpointing up to 0.9; without them 0.1 to 1.8. What exceeds a quarter, the other components cover."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFacts:
    """All that the estimate depends on."""

    footprint: ModelFootprint
    """Fewer trainable parameters than parameters means adapters on frozen weights."""
    per_device_train_batch_size: int
    """0 where micro-batches are filled by tokens: then the number of rows cannot be reduced."""
    gradient_accumulation_steps: int
    tokens: int
    """`N`, of the largest micro-batch, padding included."""
    longest_row: int
    """`T`."""
    documents: int = 0
    """Most documents of a micro-batch that a kernel for packed rows attends to on a GPU; 0 where there is no such
    kernel."""
    weights: str
    """Type of the weights in memory: `float32`, `bfloat16`, `float16`."""
    mixed: str
    """Autocast: `bf16`, `fp16` or `no`."""
    optimizer: str
    """A value of `optim`."""
    gradient_checkpointing: bool
    """Activations are recomputed, layer by layer, in the backward pass."""
    device: str
    """`cpu`, or the name of a GPU."""
    attention: str = "sdpa"
    """`eager` keeps every head's scores, `[B, heads, T, T]`; fused attention does not (Dao et al., 2022)."""
    supervised_share: float = 1.0
    """Share of the positions that are trained."""
    logits_chunk_bytes: int | None = None
    """Size of the chunks in which logits are computed; None where all are computed at once."""
    world_size: int = 1
    """Processes that reduce gradients together."""
    sharded_over: int = 1
    """Devices over which FSDP shards weights, gradients and optimizer state."""
    reshard_after_forward: bool = True
    """False keeps all layers gathered until their backward pass."""
    process_bytes: int = 0
    """What the process holds without a model; counted on CPU alone."""
    kernel_bytes: int = 0
    """Kernels that are generated for the shapes of the run, in 16 bits on CPU (see `sft.batching.kernels`)."""

    @property
    def has_adapters(self) -> bool:
        return self.footprint.num_trainable_parameters < self.footprint.num_parameters

    @property
    def element_bytes(self) -> int:
        """Bytes of one unquantized weight."""
        return _ELEMENT_BYTES[self.weights]

    @property
    def is_mixed(self) -> bool:
        return self.mixed != "no"

    @property
    def computes_in_16_bit(self) -> bool:
        """Whether layers get their weights in 16 bits: FSDP gathers them in the type of autocast."""
        return self.element_bytes == 2 or (self.is_mixed and self.sharded_over > 1)


def estimate_memory(facts: MemoryFacts) -> MemoryEstimate:
    """What one device holds at its peak, in bytes.

    The components are summed as if all were held at once, as with gradient accumulation. Without it, gradients are
    allocated as activations are freed; on CPU they then take the heap's fragmented space (see `_heap_slack_bytes`).
    """
    trained = facts.footprint.num_trainable_parameters
    # Adapters are float32 whatever the type of the base (peft's `autocast_adapter_dtype`).
    trained_element = 4 if facts.has_adapters else facts.element_bytes
    estimate = MemoryEstimate(
        weights_bytes=_weights_bytes(facts),
        gradients_bytes=trained * trained_element,
        optimizer_bytes=round(trained * optimizer_bytes(facts.optimizer, trained_element)),
        activations_bytes=_activation_bytes(facts, gradient_checkpointing=facts.gradient_checkpointing)
        + _attention_workspace_bytes(facts)
        + _adapted_expert_bytes(facts),
        logits_bytes=_logits_bytes(facts),
        slack_bytes=_slack_bytes(facts, trained * trained_element) + (_BUCKET_BYTES if facts.world_size > 1 else 0),
        process_bytes=facts.process_bytes,
    )
    return _sharded(estimate, facts) if facts.sharded_over > 1 else estimate


def _sharded(estimate: MemoryEstimate, facts: MemoryFacts) -> MemoryEstimate:
    """The estimate where FSDP shards weights, gradients and optimizer state; compared on fake devices only.

    At its peak a device holds its shards, the gathered output layer, and of the other layers the current and the next
    one, in the compute type. The full gradient of one of them is held too, and again in float32 while it is reduced.
    """
    size, count = facts.footprint, facts.sharded_over
    compute = 2 if facts.is_mixed else facts.element_bytes
    head = size.vocab_size * size.hidden_size
    layer = (size.num_parameters - head - size.num_lookup_parameters) // size.num_layers
    gathered = head + 2 * layer if facts.reshard_after_forward else size.num_parameters
    trained_share = size.num_trainable_parameters / size.num_parameters
    full_gradient = round(trained_share * max(layer, head) * (compute + 4))
    return replace(
        estimate,
        weights_bytes=size.weight_bytes // count + gathered * compute,
        gradients_bytes=estimate.gradients_bytes // count + full_gradient,
        optimizer_bytes=estimate.optimizer_bytes // count,
    )


def _activation_bytes(facts: MemoryFacts, *, gradient_checkpointing: bool) -> int:
    """What all layers keep.

    Korthikanti et al. (2022, Reducing Activation Recomputation in Large Transformer Models, section 4) count
    `34*h + 5*heads*T` bytes per token and layer for a GPT in 16 bits with dropout, and `2*h` with checkpointing, plus
    the one layer that is being recomputed.
    """
    size, is_16_bit = facts.footprint, facts.computes_in_16_bit
    per_hidden, per_intermediate = _KEPT_BYTES[facts.is_mixed, is_16_bit, facts.has_adapters]
    layer = facts.tokens * (per_hidden * size.hidden_size + per_intermediate * _intermediate_size(size))
    if facts.attention == "eager":
        # The softmax is float32; in 16 bits the product with the values keeps a cast copy of it.
        score_bytes = 6 if facts.is_mixed or is_16_bit else 4
        layer += score_bytes * size.num_attention_heads * facts.tokens * facts.longest_row
    if not gradient_checkpointing:
        return size.num_layers * layer
    # Hidden states between layers have the type of the layers' weights, under autocast too.
    between_layers = facts.tokens * size.hidden_size * (2 if is_16_bit else 4)
    return size.num_layers * between_layers + layer


def _attention_workspace_bytes(facts: MemoryFacts) -> int:
    """What the backward pass of flash attention for packed rows allocates, in one layer at a time.

    The sums of the queries' gradients and of the softmax, float32, for all tokens and 128 more for each document (Tri
    Dao's `mha_varlen_bwd`: `total_q + 128 * batch_size` rows), with heads rounded up to 32, above 128 to 64. This is
    what torch 2.11's allocator counts, to 1 MiB. With `full_determinism` there are several such sums, one for each
    group of a GPU's multiprocessors; these are not counted.
    """
    size = facts.footprint
    if not facts.documents or not size.num_attention_heads:
        return 0
    head = size.head_size or size.hidden_size // size.num_attention_heads
    multiple = 32 if head <= 128 else 64
    rounded = -(-head // multiple) * multiple
    return 4 * size.num_attention_heads * (facts.tokens + _ROWS_BESIDE_DOCUMENT * facts.documents) * (rounded + 1)


def _adapted_expert_bytes(facts: MemoryFacts) -> int:
    """Copies of stacked experts: peft adds their adapters to the weights in each forward pass, not to their output.

    The sums are kept for the backward pass, with checkpointing those of one layer at a time. Beside them, one layer
    takes two copies: the adapters' product, and the gradient of the sum. Compared with measured peaks on CPU in float32
    (8 experts, 4 and 8 layers): 6 to 42 % above them, most with checkpointing. In bfloat16 on CPU the peaks were
    higher.
    """
    copies = facts.footprint.adapted_stack_bytes
    one_layer = copies // facts.footprint.num_layers
    return (one_layer if facts.gradient_checkpointing else copies) + 2 * one_layer


def _logits_bytes(facts: MemoryFacts) -> int:
    """The logits of the supervised positions, and what the loss makes of them.

    In chunks, they count as the current chunk (logits and their gradient) and what is kept for the backward pass: the
    gradients of the hidden states, and of the output layer's weights where these are trained. Otherwise all logits and
    their gradient count, in the type of the weights (float32 under autocast, which accelerate casts back).
    """
    size = facts.footprint
    supervised = facts.tokens * facts.supervised_share
    num_logits = supervised * size.vocab_size
    is_16_bit = facts.element_bytes == 2
    if facts.logits_chunk_bytes is None:
        return round(2 * num_logits * (2 if is_16_bit and not facts.is_mixed else 4))
    kept = 4 * supervised * size.hidden_size
    if not facts.has_adapters:
        kept += 4 * size.vocab_size * size.hidden_size
    # Beside float32 logits, which become their own gradient, there are those in 16 bits, or the gradient in 16 bits.
    return round(kept + min(facts.logits_chunk_bytes, 4 * num_logits) * (1.5 if is_16_bit or facts.is_mixed else 1))


def _weights_bytes(facts: MemoryFacts) -> int:
    """The weights, and their copies in the compute type."""
    size, is_float32 = facts.footprint, facts.element_bytes == 4
    # Autocast keeps a 16-bit copy of each float32 weight until the backward pass is over.
    num_float32 = size.num_parameters if is_float32 else size.num_trainable_parameters if facts.has_adapters else 0
    if size.num_4bit_parameters:
        # Under autocast the stacked experts stay in 16 bits.
        num_float32 = size.num_parameters - size.num_4bit_parameters - size.num_stacked_parameters
    beside = _bytes_beside_4bit_weights(size, 4 if is_float32 and not facts.is_mixed else 2)
    return size.weight_bytes + (2 * num_float32 if facts.is_mixed else 0) + beside


def _bytes_beside_4bit_weights(footprint: ModelFootprint, compute_bytes: int) -> int:
    """Scales of 4-bit weights, and the one matrix that is de-quantized at a time, forward and backward alike.

    One scale for each 64 weights, itself in 8 bits with a float32 for each 256 of them (Dettmers et al., 2023, QLoRA,
    section 3).
    """
    in_4_bits = footprint.num_4bit_parameters
    if not in_4_bits:
        return 0
    scales = in_4_bits // 64 + in_4_bits // 64 // 256 * 4
    widest = footprint.hidden_size * _intermediate_size(footprint)
    return scales + compute_bytes * widest


def _slack_bytes(facts: MemoryFacts, gradient_bytes: int) -> int:
    """What allocators and libraries hold beyond what is in use."""
    if facts.device != "cpu":
        return _CUDA_BYTES
    size = facts.footprint
    kind = "4-bit" if size.num_4bit_parameters else "adapters" if facts.has_adapters else "all"
    kept = _activation_bytes(facts, gradient_checkpointing=False)
    fragmented = kept * _FRAGMENTATION[kind][facts.gradient_checkpointing]
    # Two chunks of logits beside the current one: chosen by the measured peaks of a model with a small body.
    logits = 4 * facts.tokens * facts.supervised_share * size.vocab_size
    fragmented += 2 * min(facts.logits_chunk_bytes or 0, logits)
    reused = gradient_bytes if facts.gradient_accumulation_steps == 1 else 0
    # The heap also keeps what weights held before they were quantized to 4 bits.
    return _heap_slack_bytes(fragmented, reused) + facts.element_bytes * size.num_4bit_parameters + facts.kernel_bytes


def _heap_slack_bytes(fragmented: float, reused: int) -> int:
    """What glibc's heap and the libraries hold beyond what is in use.

    The likely cause, not proven here: glibc asks its free list for more than an aligned block needs, and splits off the
    rest, so a freed block cannot be reused for the next one of the same size (sourceware.org bug 14581). Between the
    tensors that a layer keeps, the space of its temporary tensors stays unused; with checkpointing too, since the
    layer's own tensors are freed and the next layer's take new memory. Gradients that are allocated as activations are
    freed reuse this space.
    """
    return _CPU_LIBRARY_BYTES + max(round(fragmented) - reused, 0)


def _intermediate_size(footprint: ModelFootprint) -> int:
    return footprint.intermediate_size or 4 * footprint.hidden_size
