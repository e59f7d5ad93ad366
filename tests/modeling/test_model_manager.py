"""Tokenizer and model: what is chosen, what is refused, what is saved."""

from __future__ import annotations

import pytest
import torch

from sft.common.data_records import SamplePrompt
from sft.common.errors import ConfigError, ModelError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import LoRAConfig, ModelConfig, QuantizationConfig, TrainingConfig
from sft.modeling import precision as precision_module
from sft.modeling.answering import answer_prompts
from sft.modeling.fitting import fit_to_tokenizer, set_generation_defaults
from sft.modeling.footprint import footprint
from sft.modeling.loading import load_pretrained_model
from sft.modeling.precision import resolve_precision
from sft.modeling.tokenizer import load_tokenizer
from tests.support.parts import ARCHITECTURES, POSITIONS, VOCABULARY, build_model, build_tokenizer

CPU, GPU = DistributedContext(), DistributedContext(device="cuda:0")
FLOAT32 = Precision(weights="float32", mixed="no")


@pytest.mark.parametrize(
    ("bf16", "fp16", "has_bf16", "expected"),
    [
        ("auto", "auto", True, ("float32", "bf16")),
        ("auto", "auto", False, ("float32", "fp16")),
        (False, "auto", True, ("float32", "no")),
        (False, True, True, ("float32", "fp16")),
        ("auto", True, True, ("float32", "fp16")),
        (True, "auto", True, ("float32", "bf16")),
        ("auto", False, False, ("float32", "no")),
    ],
)
def test_resolve_precision_on_a_gpu(monkeypatch, bf16, fp16, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    precision = resolve_precision(
        ModelConfig(model_name_or_path="m"), TrainingConfig(bf16=bf16, fp16=fp16), GPU, adapters_only=False
    )
    assert (precision.weights, precision.mixed) == expected


@pytest.mark.parametrize(("has_bf16", "weights"), [(True, "bfloat16"), (False, "float16")])
def test_resolve_precision_keeps_frozen_weights_small_on_a_gpu(monkeypatch, has_bf16, weights):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    model = ModelConfig(model_name_or_path="m")
    assert resolve_precision(model, TrainingConfig(), GPU, adapters_only=True).weights == weights


@pytest.mark.parametrize(("is_faster", "mixed"), [(False, "no"), (True, "bf16")])
def test_resolve_precision_on_cpu_is_float32(monkeypatch, is_faster, mixed):
    monkeypatch.setattr(precision_module, "is_bfloat16_faster_on_cpu", lambda: is_faster)
    model = ModelConfig(model_name_or_path="m")
    expected = Precision(weights="float32", mixed=mixed)
    assert resolve_precision(model, TrainingConfig(), CPU, adapters_only=True) == expected
    with pytest.raises(ConfigError, match="fp16: true needs a GPU"):
        resolve_precision(model, TrainingConfig(fp16=True), CPU, adapters_only=False)


def test_load_model_trains_float32_whatever_the_checkpoint_holds(tmp_path):
    build_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    config = ModelConfig(model_name_or_path=str(tmp_path))
    precision = resolve_precision(config, TrainingConfig(), CPU, adapters_only=False)
    model = load_pretrained_model(config, None, None, precision, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_load_tokenizer_pads_with_the_end_token_where_there_is_no_pad(model_folder):
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=model_folder("gpt2")))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0


@pytest.mark.parametrize("content", [None, "{}"])
def test_load_tokenizer_says_in_one_line_what_is_not_there(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert ("no config.json in" if content is None else "the tokenizer cannot be loaded") in str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_load_model_puts_adapters_on_all_linear_layers_but_the_head(model_folder, architecture):
    config = ModelConfig(model_name_or_path=model_folder(architecture))
    model = load_pretrained_model(config, LoRAConfig(r=4), None, FLOAT32, CPU)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    per_layer = {"gpt2": 4, "phi3": 4}.get(architecture, 7)
    assert len(adapted) == 2 * per_layer
    assert not any("lm_head" in name for name in adapted)
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (
            ["q_proj"],
            r"target_modules \[q_proj\] match nothing in GPT2LMHeadModel. .*: c_attn, c_fc, c_proj. Use those",
        ),
        (["c_attn", "q_proj"], r"target_modules \[q_proj\] match nothing"),
    ],
)
def test_load_model_names_the_layers_where_a_target_matches_nothing(model_folder, targets, said):
    config = ModelConfig(model_name_or_path=model_folder("gpt2"))
    with pytest.raises(ModelError, match=said):
        load_pretrained_model(config, LoRAConfig(target_modules=targets), None, FLOAT32, CPU)


def test_load_model_refuses_unknown_modules_to_save(model_folder):
    config = ModelConfig(model_name_or_path=model_folder("llama"))
    with pytest.raises(ModelError, match=r"modules_to_save \[wte\] match nothing .* embed_tokens"):
        load_pretrained_model(config, LoRAConfig(modules_to_save=["wte"]), None, FLOAT32, CPU)


def test_fit_to_tokenizer_refuses_rows_beyond_learned_positions():
    tokenizer = build_tokenizer()
    fit_to_tokenizer(build_model("gpt2"), tokenizer, 128, adapters_only=False)
    with pytest.raises(ModelError, match="Write max_seq_length: 128 or less"):
        fit_to_tokenizer(build_model("gpt2"), tokenizer, 129, adapters_only=False)
    fit_to_tokenizer(build_model("llama"), tokenizer, 4096, adapters_only=False)  # rotary: allowed, and said


def test_fit_to_tokenizer_adds_embeddings_for_new_tokens_or_refuses():
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<new{i}>" for i in range(VOCABULARY)])
    with pytest.raises(ModelError, match="adapters cannot add them"):
        fit_to_tokenizer(build_model("llama"), tokenizer, 64, adapters_only=True)
    model = build_model("llama")
    fit_to_tokenizer(model, tokenizer, 64, adapters_only=False)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_set_generation_defaults_ends_at_the_turns_end():
    plain = build_tokenizer(None, eos_token="<|endoftext|>")
    assert set_generation_defaults(build_model("llama"), plain, is_chat=False) == [0]
    # The template's end marker is another token than the tokenizer's end: both end an answer.
    two_ends = build_tokenizer(eos_token="<|endoftext|>", additional_special_tokens=["<|im_end|>"])
    model = build_model("llama")
    assert set_generation_defaults(model, two_ends, is_chat=True) == [2, 0]
    assert model.generation_config.eos_token_id == [2, 0]


def test_footprint_counts_parameters():
    model = build_model("llama")
    size = footprint(model)
    assert size.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size.num_trainable_parameters == size.num_parameters
    assert (size.hidden_size, size.num_layers, size.vocab_size) == (32, 2, VOCABULARY)


def test_load_model_refuses_weights_that_lack_a_layer(tmp_path):
    model = build_model("llama")
    model.save_pretrained(tmp_path)
    model.config.num_hidden_layers = 3
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lack 9 tensors of the model, model.layers.2"):
        load_pretrained_model(ModelConfig(model_name_or_path=str(tmp_path)), None, None, FLOAT32, CPU)


def test_load_model_says_in_one_line_that_a_file_is_broken(tmp_path):
    build_model("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_pretrained_model(ModelConfig(model_name_or_path=str(tmp_path)), None, None, FLOAT32, CPU)


def test_load_model_in_4_bits_lets_gradients_through_after_an_evaluation(model_folder):
    """Where the CPU has AVX512-BF16, bitsandbytes would repack the weights at the first evaluation."""
    config = ModelConfig(model_name_or_path=model_folder("llama"))
    model = load_pretrained_model(
        config, LoRAConfig(r=4), QuantizationConfig(load_in_4bit=True), FLOAT32, DistributedContext()
    )
    ids = torch.arange(1, 9).view(1, -1)
    model.eval()
    with torch.no_grad():
        before = model(input_ids=ids).logits
    model.train()
    logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits.detach(), before)
    logits.square().mean().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert gradients
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("words", [POSITIONS - 3, POSITIONS, POSITIONS + 40])
def test_answers_end_with_the_positions_that_a_model_has_learned(model_folder, words):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("gpt2"))
    model = build_model("gpt2")
    (token,) = tokenizer(" the")["input_ids"][:1]
    text = tokenizer.decode([token] * words)
    prompt = SamplePrompt(text=text)
    assert len(tokenizer(text)["input_ids"]) == words
    (answer,) = answer_prompts(model, tokenizer, [prompt], [], 8)
    assert not answer.ended
    assert (answer.text == "") == (words >= POSITIONS)
