"""Tokenizer and model: loaded, quantized, given adapters, checked against the settings, saved."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from configuration.schema import LoRAConfig, ModelConfig, QuantizationConfig, TrainingConfig
from hub_errors import hub_problem
from modeling.adapters import add_adapters
from modeling.answering import answer_prompt
from modeling.speed import is_bfloat16_faster_on_cpu
from prompting.rendering import ChatRenderer
from prompting.templates import resolve_chat_template
from sft_errors import ConfigError, ModelError, one_line
from sft_types import Answer, DistributedContext, ModelFootprint, Precision, SamplePrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("sft.model")


def resolve_precision(
    model: ModelConfig, training: TrainingConfig, context: DistributedContext, *, adapters_only: bool
) -> Precision:
    """Decides the types that are left to `auto`.

    Raises:
        ConfigError: if a type is asked for that the device does not have.
    """
    on_gpu = context.device.startswith("cuda")
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if training.fp16 is True and not on_gpu:
        raise ConfigError(
            f"fp16: true needs a GPU and this run is on {context.device}; write fp16: auto, or fp16: false."
        )
    if training.bf16 is True and on_gpu and not has_bf16:
        raise ConfigError("bf16: true, but this GPU has no bfloat16; write bf16: auto (it will choose fp16).")
    if context.device == "cpu" and context.world_size == 1 and training.bf16 == "auto":
        # Several processes would have to agree, and share the cores that are measured.
        has_bf16 = is_bfloat16_faster_on_cpu()
    if training.bf16 is True or (training.bf16 == "auto" and training.fp16 is not True and has_bf16):
        mixed = "bf16"
    elif training.fp16 is True or (training.fp16 == "auto" and training.bf16 == "auto" and on_gpu):
        mixed = "fp16"
    else:
        mixed = "no"
    weights = model.dtype
    if weights == "auto":
        weights = "float32"
        if adapters_only and on_gpu:
            weights = "bfloat16" if has_bf16 else "float16"
    return Precision(weights=weights, mixed=mixed)


def load_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer, with a pad token, and the chat template that the settings ask for.

    Raises:
        ModelError: if there is none, or it cannot say where its tokens stand in the text.
        ConfigError: if `chat_template` is no template.
    """
    from transformers import AutoTokenizer

    _check_model_folder(config)
    place = config.tokenizer_name_or_path or config.model_name_or_path
    gguf = {"gguf_file": config.gguf_file} if config.gguf_file and config.tokenizer_name_or_path is None else {}
    with one_line_errors("tokenizer", place):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=config.trust_remote_code, **gguf)
    if not tokenizer.is_fast:
        raise ModelError(
            f"{place}: its tokenizer has no fast version, so what is trained cannot be found in the text. "
            "Name one that has, with tokenizer_name_or_path."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{place}: its tokenizer has no end-of-text token; an answer's end could not be learned.")
    if tokenizer.pad_token_id is None:
        # Labels are decided by position, never by token id, so padding with the end token changes nothing.
        tokenizer.pad_token = tokenizer.eos_token
        logger.info(
            "The tokenizer has no pad token: padding with %s, which is never trained there.", tokenizer.eos_token
        )
    if config.chat_template is not None:
        begins_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = resolve_chat_template(config.chat_template, begins_with_bos=begins_with_bos)
    return tokenizer


def _check_model_folder(config: ModelConfig) -> None:
    """Says what a place on disk lacks to be a model's folder; transformers would guess at the Hub."""
    folder = Path(config.model_name_or_path)
    if folder.is_file():
        raise ModelError(
            f"model_name_or_path: {folder} is a file. Name the folder that holds it (for a GGUF file, with gguf_file)."
        )
    if folder.is_dir() and config.gguf_file is None and not (folder / "config.json").is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        adapters = " These are adapters: name their base." if (folder / "adapter_config.json").is_file() else ""
        raise ModelError(f"model_name_or_path: no config.json in {folder}; there: {there}.{adapters}")


def load_model(
    config: ModelConfig,
    lora: LoRAConfig | None,
    quantization: QuantizationConfig | None,
    precision: Precision,
    context: DistributedContext,
    *,
    gradient_checkpointing: bool = False,
) -> "PreTrainedModel":
    """The model, ready to train: quantized, with adapters, as the settings ask.

    Raises:
        ModelError: if it cannot be loaded, or an adapter's target is not in it.
    """
    options: dict[str, Any] = {
        "dtype": getattr(torch, precision.weights),
        "trust_remote_code": config.trust_remote_code,
    }
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    if config.gguf_file is not None:
        options["gguf_file"] = config.gguf_file
    if quantization is not None:
        options["quantization_config"] = _bitsandbytes_config(quantization, precision)
        # Each process holds the whole model on its own device; `auto` would spread it over all (accelerate#2713).
        options["device_map"] = {"": context.device}
    model = _load_weights(config, options)
    if config.gguf_file is not None:
        _forget_gguf_quantization(model)
    if quantization is not None:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        _keep_4bit_weights_trainable(model)
    if lora is not None:
        model = add_adapters(model, lora)
        if gradient_checkpointing:
            # The frozen embedding's output asks for no gradient, and a checkpointed block needs an input that does.
            model.enable_input_require_grads()
    return model


def fit_to_tokenizer(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_seq_length: int, *, adapters_only: bool
) -> None:
    """Checks and adjusts what model and tokenizer must agree on: positions, vocabulary, special tokens.

    Raises:
        ModelError: if rows are longer than the model's learned positions, or tokens have no embedding.
    """
    config = model.config.get_text_config()
    positions = _num_learned_positions(model)
    if positions is not None and max_seq_length > positions:
        raise ModelError(
            f"max_seq_length is {max_seq_length} but {_class_name(model)} has {positions} learned positions. "
            f"Write max_seq_length: {positions} or less."
        )
    limit = getattr(config, "max_position_embeddings", None)
    if positions is None and limit is not None and max_seq_length > limit:
        logger.info("Note: max_seq_length %d is beyond the %d positions the model was made for.", max_seq_length, limit)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        if adapters_only:
            raise ModelError(
                f"The tokenizer has {len(tokenizer)} tokens, the model {rows}; adapters cannot add them. "
                "Use the model's own tokenizer, or train all weights."
            )
        logger.info("The tokenizer has %d tokens, the model %d: new embeddings are added.", len(tokenizer), rows)
        model.resize_token_embeddings(len(tokenizer))
    for special in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # Trainer would do this too, with a warning.
        setattr(model.config, special, getattr(tokenizer, special))


def set_generation_defaults(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, is_chat: bool
) -> list[int]:
    """Makes the saved generation config end an answer where training ended it; returns the ids that do."""
    ends = [tokenizer.eos_token_id]
    if is_chat:
        ends = ChatRenderer(tokenizer).end_token_ids()
    generation = model.generation_config
    generation.eos_token_id = ends  # as a list: Trainer would make it one, in some versions
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    if not generation.do_sample and (generation.temperature, generation.top_p, generation.top_k) != (None, None, None):
        # Sampling values without sampling make `save_pretrained` refuse the file.
        generation.temperature = generation.top_p = generation.top_k = None
    return ends


def answer_prompts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[SamplePrompt],
    eos_token_ids: list[int],
    max_new_tokens: int,
) -> list[Answer]:
    """The model's greedy answers to prompts, rendered by the chat template unless they are plain text."""
    answers, positions = [], _num_learned_positions(model)
    for prompt in prompts:
        text = prompt.text
        if text is None:
            text = ChatRenderer(tokenizer).render_prompt(prompt.messages, prompt.tools)
        answers.append(
            answer_prompt(
                model,
                tokenizer,
                text,
                max_new_tokens=max_new_tokens,
                eos_token_ids=eos_token_ids,
                add_special_tokens=prompt.text is not None,
                positions=positions,
            )
        )
    return answers


def footprint(model: "PreTrainedModel") -> ModelFootprint:
    """The model's size. A quantized weight counts the parameters it stands for."""
    config = model.config.get_text_config()
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    is_shared = output is not None and getattr(output, "weight", None) is embedding.weight
    # Two 4-bit weights share a byte: bitsandbytes' own attribute tells the true count.
    sizes = [(_true_count(p), p.requires_grad, p.numel() * p.element_size()) for p in model.parameters()]
    return ModelFootprint(
        num_parameters=sum(count for count, _, _ in sizes),
        num_trainable_parameters=sum(count for count, trainable, _ in sizes if trainable),
        weight_bytes=sum(size for _, _, size in sizes),
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        intermediate_size=getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 0,
        num_attention_heads=getattr(config, "num_attention_heads", 0),
        num_lookup_parameters=0 if is_shared else embedding.weight.numel(),
        num_4bit_parameters=sum(_true_count(p) for p in model.parameters() if _true_count(p) != p.numel()),
    )


def make_adapters_portable(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", output_dir: str, *, gguf_file: str | None
) -> None:
    """Lets the files of adapters name a base that can be loaded from anywhere; called before the first is written.

    A relative path would hold only where this run was started. A GGUF file cannot be named at all, so the base is
    saved once as ordinary weights beside the adapters.
    """
    if not hasattr(model, "peft_config"):
        return
    peft_config = model.peft_config["default"]
    if gguf_file is not None:
        base = Path(output_dir, "base_model").resolve()
        peft_config.base_model_name_or_path = str(base)
        if not (base / "config.json").is_file():
            logger.info("Saving the base as safetensors in %s: adapters cannot name a GGUF file as theirs.", base)
            _save_base_of_adapters(model, tokenizer, base)
    elif os.path.isdir(str(peft_config.base_model_name_or_path)):
        peft_config.base_model_name_or_path = os.path.abspath(peft_config.base_model_name_or_path)


def save_final_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    output_dir: str,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Saves a model (or its adapters), the tokenizer with its chat template, and the generation config.

    Args:
        model, tokenizer: as they are.
        output_dir: where to.
        weights: what to save in place of the model's own, which lie spread over processes.
    """
    model.save_pretrained(output_dir, state_dict=weights)
    if hasattr(model, "peft_config"):
        model.generation_config.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def _save_base_of_adapters(model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """The frozen model as if it had never had adapters."""
    base = model.get_base_model()
    weights = {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in base.state_dict().items()
        if ".lora_" not in name and ".modules_to_save." not in name
    }
    base.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def _bitsandbytes_config(quantization: QuantizationConfig, precision: Precision) -> Any:
    try:
        import bitsandbytes  # noqa: F401  (transformers needs it; its absence deserves our own line)
        from transformers import BitsAndBytesConfig
    except ImportError:
        raise ModelError("quantization_config needs the package bitsandbytes: pip install bitsandbytes.") from None
    compute = quantization.bnb_4bit_compute_dtype
    return BitsAndBytesConfig(
        load_in_4bit=quantization.load_in_4bit,
        load_in_8bit=quantization.load_in_8bit,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=getattr(torch, precision.weights if compute == "auto" else compute),
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
    )


def _load_weights(config: ModelConfig, options: dict[str, Any]) -> Any:
    """The model with all its weights.

    Raises:
        ModelError: if the files cannot be read, or lack some of the weights.
        ConfigError: if `attn_implementation` is what stands in the way.
    """
    from transformers import AutoModelForCausalLM

    # The GGUF reader draws a progress bar that has no switch.
    quiet = redirect_stderr(io.StringIO()) if config.gguf_file else nullcontext()
    try:
        with one_line_errors("model", config.model_name_or_path), quiet:
            model, loading = AutoModelForCausalLM.from_pretrained(
                config.model_name_or_path, output_loading_info=True, **options
            )
    except ModelError as error:
        if config.attn_implementation and config.attn_implementation in str(error.__cause__):
            raise ConfigError(
                f"attn_implementation: {config.attn_implementation} cannot be used here: {one_line(error.__cause__)}"
            ) from error
        raise
    if loading["missing_keys"]:
        # transformers would start them from random numbers, and the model would train, worse, without a word.
        missing = sorted(loading["missing_keys"])
        raise ModelError(
            f"{config.model_name_or_path}: the weights lack {len(missing)} tensors of the model, {missing[0]} among "
            "them. The files do not belong to its config.json, or are incomplete."
        )
    return model


def _keep_4bit_weights_trainable(model: Any) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    The repacked form (`Linear4bit.forward`, bitsandbytes 0.50) stays for good, has no backward pass, and fails outright
    for layers narrower than a block of 64: training after an evaluation would get no gradient through these layers.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _forget_gguf_quantization(model: Any) -> None:
    """The weights are plain floats by now; still marked as quantized, saving and training would be refused."""
    model.hf_quantizer, model.is_quantized = None, False
    model.config.__dict__.pop("quantization_config", None)


def _num_learned_positions(model: Any) -> int | None:
    """How many positions the model has learned embeddings for; None where positions are computed (RoPE, ALiBi).

    Recognized by structure: an embedding beside the token embedding with a row for each position (OPT keeps two rows
    more than positions).
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return None
    tokens = model.get_input_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not tokens and 0 <= module.num_embeddings - limit <= 2:
            return limit
    return None


def _true_count(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    shape = getattr(state, "shape", None)
    return int(torch.Size(shape).numel()) if shape is not None else parameter.numel()


def _class_name(model: Any) -> str:
    return type(model).__name__


@cache
def tell_of_hub(place: str) -> None:
    """Says, once, that a model is not looked for here: where there is no network, that takes a minute of silence."""
    if not Path(place).exists():
        logger.info("%s is no folder here: looking in the Hugging Face cache (HF_HOME), and on the Hub.", place)


@contextmanager
def one_line_errors(what: str, place: str) -> Iterator[None]:
    """Turns what the libraries say of a model that is not there, or not theirs, into one line.

    Raises:
        ModelError: in place of the library's error.
    """
    tell_of_hub(place)
    try:
        yield
    except Exception as error:
        problem = None if Path(place).exists() else hub_problem(error, what="model")
        if problem is not None:
            raise ModelError(f"{place}: {problem}") from error
        if isinstance(error, OSError | ValueError | ImportError | KeyError | RuntimeError | SafetensorError):
            raise ModelError(f"{place}: the {what} cannot be loaded: {one_line(error)}") from error
        raise
