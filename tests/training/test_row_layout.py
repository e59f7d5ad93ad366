"""Which layout a model gets; its loss and gradients equal those of a plain padded batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from sft.batching.layout import FlatCollator, PaddedCollator, model_inputs
from sft.common.errors import ConfigError
from sft.configuration.schema import LoRAConfig, ModelConfig
from sft.modeling import document_attention
from sft.modeling.adapters import add_adapters
from sft.modeling.document_attention import ONE_BY_ONE, isolated_documents
from sft.modeling.varlen_kernel import VarlenKernel
from tests.support import messages
from tests.support.layouts import (
    LENGTHS,
    assert_same,
    gradients,
    layout_of,
    loss_and_gradients,
    padded_loss_and_gradients,
    random_rows,
)
from tests.support.small_models import ARCHITECTURES, build_model, with_random_adapters

SIZE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


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
        "no positions": lambda: build_model("bloom"),
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
        ("narrow window", None),
        ("wide window", None),
        ("chunks", None),
        ("window of the mask alone", None),
        ("convolution", None),
        ("recurrence", None),
        ("no positions", messages.DOCUMENTS_NOT_ISOLATED),
        ("sinks", None),
        ("caps", None),
        ("experts", None),
        ("learned positions", None),
    ],
)
def test_resolve_layout_detects_what_the_model_supports(name, obstacle):
    model = build(name)
    found = loss_and_gradients(model, random_rows())
    assert (found[2].is_padding_free, found[2].obstacle) == (obstacle is None, obstacle)
    assert (obstacle or messages.PADDING_FREE) in found[2].describe()
    assert_same(found, padded_loss_and_gradients(model, random_rows()))


def test_resolve_layout_does_not_change_the_model():
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
def test_resolve_layout_pads_if_deepspeed_shards_weights(monkeypatch, settings, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    layout = layout_of(build_model("llama"), extra_training_arguments=settings)
    assert messages.DEEPSPEED_SHARDS in layout.describe()
    assert layout.output.chunk_bytes is None


def test_resolve_layout_ignores_deepspeed_that_is_null():
    assert layout_of(build_model("llama"), extra_training_arguments={"deepspeed": None}).is_padding_free


def test_resolve_layout_pads_if_the_model_raises_any_error():
    model = build_model("llama")

    plain = model.forward

    def forward(input_ids, attention_mask=None, position_ids=None, **others):
        if position_ids is not None:
            raise KeyError("position_ids")
        return plain(input_ids=input_ids, attention_mask=attention_mask, **others)

    model.forward = forward
    layout = layout_of(model)
    assert messages.PACKED_ROW_FAILS in layout.describe()
    assert isinstance(layout.collator, PaddedCollator)


def test_resolve_layout_replaces_sdpa():
    assert layout_of(
        build_model("llama"), ModelConfig(model_name_or_path="m", attn_implementation="sdpa")
    ).is_padding_free


@pytest.fixture
def old_gpu(monkeypatch):
    """A device whose kernel for packed rows exists and does not run."""
    reason = messages.OLD_GPU.format("7.5")
    kernel = VarlenKernel(attend=pytest.fail, takes_window=True, takes_groups=True, obstacle=reason)
    monkeypatch.setattr(document_attention, "find_kernel", lambda device: kernel)
    return reason


def test_rows_are_padded_where_the_kernel_cannot_be_used(old_gpu):
    layout = layout_of(build_model("llama"))
    assert not layout.is_padding_free
    assert layout.attention != ONE_BY_ONE
    assert (layout.obstacle, layout.findings.kernel_obstacle) == (old_gpu, old_gpu)
    assert layout.describe() == messages.PADDED_FOR_THE_KERNEL.format(old_gpu)


@pytest.mark.parametrize("setting", [{"padding_free": True}, {"packing": True}, {"tokens_per_batch": 256}])
@pytest.mark.parametrize("shares", [False, True])
def test_requested_packs_are_attended_one_by_one_without_the_kernel(old_gpu, setting, shares):
    model = build_model("llama")
    found = loss_and_gradients(model, random_rows(), **setting, share_prefixes=shares)
    layout = found[2]
    assert layout.attention == ONE_BY_ONE
    assert layout.is_padding_free
    assert messages.ONE_BY_ONE.format(old_gpu) in layout.describe()
    assert layout.collator(random_rows())["document_lengths"] == list(LENGTHS)
    assert_same(found, padded_loss_and_gradients(model, random_rows()))


def test_a_resumed_run_keeps_how_documents_are_attended(old_gpu, monkeypatch):
    kept = layout_of(build_model("llama"), packing=True).findings
    padded = layout_of(build_model("llama")).findings
    monkeypatch.undo()
    assert layout_of(build_model("llama"), packing=True, kept=kept).attention == ONE_BY_ONE
    assert not layout_of(build_model("llama"), kept=padded).is_padding_free


def test_a_resumed_run_whose_kernel_is_gone_attends_one_by_one(old_gpu, monkeypatch, caplog):
    with monkeypatch.context() as newer:
        newer.setattr(document_attention, "find_kernel", lambda device: None)
        kept = layout_of(build_model("llama")).findings
    with caplog.at_level("INFO", "sft.train"):
        assert layout_of(build_model("llama"), kept=kept).attention == ONE_BY_ONE
    assert caplog.text.count(old_gpu) == 1


def test_compiled_layers_get_no_list_of_lengths(old_gpu):
    layout = layout_of(build_model("llama"), packing=True, torch_compile=True, per_device_train_batch_size=2)
    assert "document_lengths" not in layout.collator(random_rows())


def test_evaluation_batches_have_no_fixed_shape():
    layout = layout_of(build_model("llama"), torch_compile=True, packing=True, per_device_train_batch_size=4)
    assert layout.has_fixed_shape
    assert layout.with_micro_batch_size(4).collator(random_rows())["input_ids"].shape == (1, 4 * 64)
    assert layout.evaluation_collator(random_rows())["input_ids"].shape == (1, sum(LENGTHS))


@pytest.mark.parametrize("setting", [{"padding_free": True}, {"packing": True}, {"tokens_per_batch": 256}])
def test_resolve_layout_rejects_settings_that_the_model_does_not_support(setting):
    (key,) = setting
    refused = messages.PADDING_FREE_NOT_POSSIBLE.format(key=key)
    with pytest.raises(ConfigError, match=f"^{refused}{messages.DOCUMENTS_NOT_ISOLATED}"):
        layout_of(build_model("bloom"), **setting)


def test_resolve_layout_pads_for_an_explicit_attention_implementation():
    asked = ModelConfig(model_name_or_path="m", attn_implementation="eager")
    layout = layout_of(build_model("llama"), asked)
    assert not layout.is_padding_free
    assert "attn_implementation: eager" in layout.describe()
    with pytest.raises(ConfigError, match=rf"^packing: .*attn_implementation: eager .*{messages.CHOOSE_ONE}\.$"):
        layout_of(build_model("llama"), asked, packing=True)


def test_rows_are_packed_with_neftune_but_their_prefixes_are_not_shared():
    layout = layout_of(build_model("llama"), extra_training_arguments={"neftune_noise_alpha": 5.0})
    assert layout.is_padding_free
    assert messages.NOISE_IS_NOT_SHARED in layout.describe()


def test_resolve_layout_has_no_obstacle_if_padding_was_requested():
    layout = layout_of(build_model("llama"), padding_free=False)
    assert layout.obstacle is None
    assert layout.describe() == f"{messages.PADDED}."


@pytest.mark.parametrize("padding_free", ["auto", False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_equal_a_plain_padded_batch(architecture, padding_free):
    model = build_model(architecture).eval()  # GPT-2 has dropout, which draws other numbers for another layout
    found = loss_and_gradients(model, random_rows(), padding_free=padding_free)
    assert_same(found, padded_loss_and_gradients(model, random_rows()))
    assert found[2].is_padding_free == (padding_free == "auto")


@pytest.mark.parametrize("padding_free", ["auto", False])
@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_loss_and_gradients_of_adapters_equal_a_padded_batch(padding_free, modules_to_save):
    torch.manual_seed(1)
    lora = LoRAConfig(r=4, target_modules=["all-linear"], modules_to_save=modules_to_save)
    model = add_adapters(build_model("llama"), lora).train()
    with_random_adapters(model)
    found = loss_and_gradients(model, random_rows(), padding_free=padding_free)
    assert_same(found, padded_loss_and_gradients(model, random_rows()))
    assert found[2].output.chunk_bytes is not None


@pytest.mark.parametrize("every_n_layers", [1, 2])
def test_loss_and_gradients_with_checkpointing_equal_a_padded_batch(every_n_layers):
    model = build_model("llama").train()
    expected = padded_loss_and_gradients(model, random_rows())
    model.gradient_checkpointing_enable({"use_reentrant": False}, every_n_layers=every_n_layers)
    assert sum(layer.gradient_checkpointing for layer in model.model.layers) == 2 // every_n_layers
    assert_same(loss_and_gradients(model, random_rows()), expected)


def test_loss_and_gradients_with_adapters_on_the_output_layer_equal_a_padded_batch():
    """The logits are then more than one product, so all of them are computed."""
    torch.manual_seed(1)
    model = add_adapters(build_model("llama"), LoRAConfig(r=4, target_modules=["q_proj", "lm_head"])).train()
    with_random_adapters(model)
    found = loss_and_gradients(model, random_rows())
    assert_same(found, padded_loss_and_gradients(model, random_rows()))
    assert found[2].is_padding_free
    assert found[2].output.chunk_bytes is None


def test_loss_and_gradients_of_a_batch_of_fixed_size_equal_a_padded_batch():
    model = build_model("llama").train()
    layout = layout_of(model)
    collator = FlatCollator(0, fixed_tokens=150, max_seq_length=40)
    batch = collator(random_rows())
    assert batch["input_ids"].shape == (1, 150)
    assert batch["cu_seq_lens_q"].diff().tolist() == [*LENGTHS, 40, 26, *[0] * 7]
    assert batch["counts"]["computed"] == 150
    assert batch["counts"]["tokens"] == sum(LENGTHS)
    with isolated_documents(model, layout.attention):
        total = layout.output.loss_sum(model, model_inputs(batch), batch)
    (total / batch["counts"]["supervised"]).backward()
    expected = padded_loss_and_gradients(build_model("llama").train(), random_rows())
    assert_same((total.detach() / batch["counts"]["supervised"], gradients(model)), expected)


@pytest.mark.parametrize("collator", [FlatCollator(0), PaddedCollator(0)])
def test_a_batch_of_fillers_has_zero_loss_and_zero_gradients(collator):
    model = build_model("llama").train()
    layout = layout_of(model, padding_free=isinstance(collator, FlatCollator))
    batch = collator([{**row, "labels": np.full_like(row["labels"], -100)} for row in random_rows()])
    assert batch["counts"] == {
        "rows": 0,
        "tokens": 0,
        "supervised": 0,
        "computed": batch["input_ids"].numel(),
        "squares": 0,
        "weight": 0,
        "weighted_rows": 0,
    }
    with isolated_documents(model, layout.attention):
        layout.output.loss_sum(model, model_inputs(batch), batch).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name  # DDP waits for every one
        assert weight.grad.abs().max() == 0, name
