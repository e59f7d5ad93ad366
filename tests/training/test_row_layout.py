"""Which models can be given several documents in one row, and what is said of those that cannot."""

from __future__ import annotations

import pytest
import torch
import transformers

from sft.common.errors import ConfigError
from sft.configuration.schema import ModelConfig
from sft.modeling.document_attention import UnsupportedAttention, attend_within_documents
from tests.support import messages
from tests.support.parts import build_model
from tests.training.test_same_numbers import assert_same, layout_of, ours, plain, rows

SIZE = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def build(name):
    t, few = transformers, {key: SIZE[key] for key in ("vocab_size", "hidden_size")}
    experts = {"num_experts_per_tok": 2, "num_local_experts": 4}
    torch.manual_seed(0)
    models = {
        "narrow window": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZE, sliding_window=63)),
        "wide window": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZE, sliding_window=64)),
        "chunks": lambda: t.Llama4ForCausalLM(
            t.Llama4TextConfig(**SIZE, head_dim=8, num_local_experts=2, attention_chunk_size=32)
        ),
        "convolution": lambda: t.Lfm2ForCausalLM(t.Lfm2Config(**SIZE, layer_types=["conv", "full_attention"])),
        "recurrence": lambda: t.MambaForCausalLM(t.MambaConfig(**few, num_hidden_layers=2)),
        "no positions": lambda: t.BloomForCausalLM(t.BloomConfig(**few, n_layer=2, n_head=4)),
        "sinks": lambda: t.GptOssForCausalLM(t.GptOssConfig(**SIZE, head_dim=8, **experts)),
        "caps": lambda: build_model("gemma2"),
        "experts": lambda: t.MixtralForCausalLM(t.MixtralConfig(**SIZE, **experts)),
        "window of the mask alone": lambda: t.PhimoeForCausalLM(t.PhimoeConfig(**SIZE, **experts, sliding_window=32)),
        "learned positions": lambda: t.OPTForCausalLM(
            t.OPTConfig(**few, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32)
        ),
    }
    return models[name]().eval()


@pytest.mark.parametrize(
    ("name", "obstacle"),
    [
        ("narrow window", "the model attends within a sliding window of 63 tokens"),
        ("wide window", None),
        ("chunks", "the model attends within chunks of 32 tokens"),
        ("window of the mask alone", "the model attends within a sliding window of 32 tokens"),
        ("convolution", "the model lets what stands in one document change another"),
        ("recurrence", "the model lets what stands in one document change another"),
        ("no positions", "the model lets what stands in one document change another"),
        ("sinks", "the model has attention sinks"),
        ("caps", "the model caps its attention scores"),
        ("experts", None),
        ("learned positions", None),
    ],
)
def test_resolve_layout_finds_out_what_the_model_can_be_given(name, obstacle):
    model = build(name)
    found = ours(model, rows())
    assert (found[2].is_padding_free, found[2].obstacle) == (obstacle is None, obstacle)
    assert (obstacle or messages.PADDING_FREE) in found[2].describe()
    assert_same(found, plain(model, rows()))


def test_resolve_layout_leaves_the_model_as_it_was():
    model = build_model("llama").train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    layout_of(model)
    assert model.training
    assert all(torch.equal(weight, before[name]) and weight.grad is None for name, weight in model.named_parameters())
    assert not model.lm_head._forward_pre_hooks
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize(
    ("settings", "environment"),
    [({"deepspeed": "ds.json"}, {}), ({}, {"ACCELERATE_USE_DEEPSPEED": "true"})],
)
def test_resolve_layout_pads_where_deepspeed_spreads_weights(monkeypatch, settings, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    layout = layout_of(build_model("llama"), extra_training_arguments=settings)
    assert "DeepSpeed shards the weights" in layout.describe()
    assert layout.output.chunk_bytes is None


def test_resolve_layout_takes_no_notice_of_sharding_that_is_switched_off():
    assert layout_of(build_model("llama"), extra_training_arguments={"deepspeed": None}).is_padding_free


def test_resolve_layout_survives_a_model_that_fails_in_its_own_way():
    model = build_model("llama")

    def forward(input_ids, attention_mask=None, **others):
        raise KeyError(attention_mask.shape)

    model.forward = forward
    layout = layout_of(model)
    assert "does not take several documents in one row" in layout.describe()
    assert layout.output.chunk_bytes is None


def test_resolve_layout_takes_sdpa_for_its_own():
    assert layout_of(
        build_model("llama"), ModelConfig(model_name_or_path="m", attn_implementation="sdpa")
    ).is_padding_free


def test_evaluation_batches_are_not_filled_up_for_a_compiler():
    layout = layout_of(build_model("llama"), torch_compile=True, packing=True, per_device_train_batch_size=4)
    assert layout.has_fixed_shape
    assert layout.with_micro_batch_size(4).collator(rows())["input_ids"].shape == (1, 4 * 64)
    assert layout.evaluation_collator(rows())["input_ids"].shape == (1, sum(len(row["labels"]) for row in rows()))


@pytest.mark.parametrize("setting", [{"padding_free": True}, {"packing": True}, {"tokens_per_batch": 256}])
def test_resolve_layout_stops_where_settings_need_what_the_model_cannot(setting):
    (key,) = setting
    with pytest.raises(ConfigError, match=f"^{messages.PADDING_FREE_NOT_POSSIBLE.format(key=key)}the model caps"):
        layout_of(build_model("gemma2"), **setting)


def test_resolve_layout_pads_for_an_attention_that_was_asked_for():
    asked = ModelConfig(model_name_or_path="m", attn_implementation="eager")
    layout = layout_of(build_model("llama"), asked)
    assert not layout.is_padding_free
    assert "attn_implementation: eager" in layout.describe()
    with pytest.raises(ConfigError, match=r"^packing: .*attn_implementation: eager .*Choose one\.$"):
        layout_of(build_model("llama"), asked, packing=True)


def test_resolve_layout_pads_where_noise_goes_by_the_length_of_the_row():
    """transformers divides NEFTune's noise by the square root of the tokens in a row."""
    layout = layout_of(build_model("llama"), extra_training_arguments={"neftune_noise_alpha": 5.0})
    assert not layout.is_padding_free
    assert "neftune_noise_alpha" in layout.describe()


def test_resolve_layout_says_nothing_of_padding_that_was_asked_for():
    layout = layout_of(build_model("llama"), padding_free=False)
    assert layout.obstacle is None
    assert layout.describe() == f"{messages.PADDED}."


def attend(**changed):
    arguments = {
        "module": torch.nn.Module(), "attention_mask": None, "cu_seq_lens_q": torch.tensor([0, 3, 5]),
        "max_length_q": 3,
    }  # fmt: skip
    tensors = [torch.randn(1, heads, 5, 8) for heads in (4, 2, 2)]
    arguments |= changed
    module, mask = arguments.pop("module"), arguments.pop("attention_mask")
    return attend_within_documents(module, *tensors, mask, **arguments)


def test_attend_within_documents_gives_heads_last():
    output, weights = attend()
    assert output.shape == (1, 5, 4, 8)
    assert weights is None


@pytest.mark.parametrize(
    "changed",
    [
        {"cu_seq_lens_q": None},
        {"max_length_q": None},
        {"attention_mask": torch.zeros(1, 1, 5, 5)},
        {"sliding_window": 2},
        {"softcap": 50.0},
        {"s_aux": torch.zeros(4)},
        {"is_causal": False},
    ],
)
def test_attend_within_documents_refuses_what_it_does_not_do(changed):
    with pytest.raises(UnsupportedAttention):
        attend(**changed)


def test_generation_needs_no_boundaries_once_training_is_over():
    """With boundaries missing, ours would refuse; the model's own attention is back by then."""
    model = build_model("llama").eval()
    layout_of(model)
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (1, 4)
