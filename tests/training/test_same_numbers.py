"""What makes training faster changes nothing: each against the model's own loss on a plain padded batch."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from sft.batching.layout import FlatCollator, PaddedCollator, model_inputs
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import LoRAConfig, ModelConfig, TrainingConfig
from sft.modeling.adapters import add_adapters
from sft.modeling.document_attention import isolated_documents
from sft.modeling.output_layer import OutputLayer
from sft.training.row_layout import resolve_layout
from tests.support.parts import ARCHITECTURES, build_model

FLOAT32 = Precision(weights="float32", mixed="no")
LENGTHS = (7, 19, 4, 33, 19, 2)


def rows(seed=0, lengths=LENGTHS, vocabulary=400):
    """Rows of random tokens, of which the first third, and a few more, are not trained."""
    generator = np.random.default_rng(seed)
    made = []
    for length in lengths:
        ids = generator.integers(0, vocabulary, length)
        untrained = (np.arange(length) < length // 3) | (generator.random(length) < 0.2)
        made.append({"input_ids": ids, "labels": np.where(untrained, -100, ids)})
    return made


def plain(model, batch_of_rows):
    """The loss of the plain way, with every score, and its gradients: a mean over the supervised tokens."""
    model = copy.deepcopy(model)
    width = max(len(row["input_ids"]) for row in batch_of_rows)
    ids = torch.zeros(len(batch_of_rows), width, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for index, row in enumerate(batch_of_rows):
        length = len(row["input_ids"])
        ids[index, :length] = torch.tensor(row["input_ids"])
        labels[index, :length] = torch.tensor(row["labels"])
        mask[index, :length] = 1
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    return loss.detach(), gradients(model)


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def ours(model, batch_of_rows, **settings):
    """The loss as the trainer makes it, and its gradients; the layout that was chosen."""
    model = copy.deepcopy(model)
    layout = layout_of(model, **settings)
    batch = layout.collator(batch_of_rows)
    with isolated_documents(model, layout.attention):
        total = layout.output.loss_sum(model, model_inputs(batch), batch)
        loss = total / batch["counts"]["supervised"]
        loss.backward()  # inside: checkpointed layers are computed again
    return loss.detach(), gradients(model), layout


def layout_of(model, model_config=None, **settings):
    return resolve_layout(
        model, model_config or ModelConfig(model_name_or_path="m"), TrainingConfig(**settings), FLOAT32,
        DistributedContext(), pad_token_id=0, max_seq_length=64,
    )  # fmt: skip


def assert_same(found, expected):
    """Loss to 1e-5, every gradient to 1e-5 of the largest there is."""
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max().item() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max().item() <= 1e-5 * largest, name


@pytest.mark.parametrize("padding_free", ["auto", False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradient_are_those_of_the_plain_padded_batch(architecture, padding_free):
    model = build_model(architecture).eval()  # GPT-2 has dropout, which draws other numbers for another layout
    found = ours(model, rows(), padding_free=padding_free)
    assert_same(found, plain(model, rows()))
    can_be_flat = architecture != "gemma2"  # caps its scores
    assert found[2].is_padding_free == (can_be_flat and padding_free == "auto")


@pytest.mark.parametrize("padding_free", ["auto", False])
@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_loss_and_gradient_of_adapters_are_the_same(padding_free, modules_to_save):
    torch.manual_seed(1)
    lora = LoRAConfig(r=4, target_modules=["all-linear"], modules_to_save=modules_to_save)
    model = add_adapters(build_model("llama"), lora).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # starts at zero, which would leave nothing to compare
            weight.data.normal_(std=0.1)
    found = ours(model, rows(), padding_free=padding_free)
    assert_same(found, plain(model, rows()))
    assert found[2].output.chunk_bytes is not None


@pytest.mark.parametrize("every_n_layers", [1, 2])
def test_loss_and_gradient_with_checkpointing_are_the_same(every_n_layers):
    model = build_model("llama").train()
    expected = plain(model, rows())
    model.gradient_checkpointing_enable({"use_reentrant": False}, every_n_layers=every_n_layers)
    assert sum(layer.gradient_checkpointing for layer in model.model.layers) == 2 // every_n_layers
    assert_same(ours(model, rows()), expected)


def test_loss_and_gradient_with_adapters_on_the_output_layer_are_the_same():
    """There the scores are more than one product: all of them are made."""
    torch.manual_seed(1)
    model = add_adapters(build_model("llama"), LoRAConfig(r=4, target_modules=["q_proj", "lm_head"])).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    found = ours(model, rows())
    assert_same(found, plain(model, rows()))
    assert found[2].is_padding_free
    assert found[2].output.chunk_bytes is None


def test_loss_and_gradient_of_a_batch_filled_up_to_a_fixed_size_are_the_same():
    model = build_model("llama").train()
    layout = layout_of(model)
    collator = FlatCollator(0, fixed_tokens=150, max_seq_length=40)
    batch = collator(rows())
    assert batch["input_ids"].shape == (1, 150)
    assert batch["cu_seq_lens_q"].diff().tolist() == [*LENGTHS, 40, 26, *[0] * 7]
    assert batch["counts"]["computed"] == 150
    assert batch["counts"]["tokens"] == sum(LENGTHS)
    with isolated_documents(model, layout.attention):
        total = layout.output.loss_sum(model, model_inputs(batch), batch)
    (total / batch["counts"]["supervised"]).backward()
    expected = plain(build_model("llama").train(), rows())
    assert_same((total.detach() / batch["counts"]["supervised"], gradients(model)), expected)


@pytest.mark.parametrize("collator", [FlatCollator(0), PaddedCollator(0)])
def test_a_batch_of_fillers_has_no_loss_and_a_gradient_of_zero_for_every_weight(collator):
    model = build_model("llama").train()
    layout = layout_of(model, padding_free=isinstance(collator, FlatCollator))
    batch = collator([{**row, "labels": np.full_like(row["labels"], -100)} for row in rows()])
    assert batch["counts"] == {"rows": 0, "tokens": 0, "supervised": 0, "computed": batch["input_ids"].numel(),
                               "squares": 0}  # fmt: skip
    with isolated_documents(model, layout.attention):
        layout.output.loss_sum(model, model_inputs(batch), batch).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name  # DDP waits for every one
        assert weight.grad.abs().max() == 0, name


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "gemma2"])
def test_a_document_changes_no_other_by_a_bit(architecture):
    model = build_model(architecture).eval()
    layout = layout_of(model)
    before, after = rows(), rows()
    after[2] = {**after[2], "input_ids": (after[2]["input_ids"] + 1) % 400}
    with torch.no_grad(), isolated_documents(model, layout.attention):
        scores = [model(**model_inputs(layout.collator(batch))).logits[0] for batch in (before, after)]
    bounds = np.concatenate([[0], np.cumsum(LENGTHS)])
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        assert torch.equal(scores[0][start:end], scores[1][start:end]) == (number != 2)


def test_every_document_alone_gives_the_same_scores():
    model = build_model("llama").eval()
    layout = layout_of(model)
    bounds = np.concatenate([[0], np.cumsum(LENGTHS)])
    with torch.no_grad():
        with isolated_documents(model, layout.attention):
            together = model(**model_inputs(layout.collator(rows()))).logits[0]
        for row, start in zip(rows(), bounds, strict=False):
            alone = model(input_ids=torch.tensor(row["input_ids"])[None]).logits[0]
            torch.testing.assert_close(together[start : start + len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_scores_are_made_for_supervised_positions_alone():
    """The layer itself is given none of them, and no tensor as large as all scores is kept."""
    model = build_model("llama").train()
    layout = layout_of(model)
    batch = layout.collator(rows())
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
        isolated_documents(model, layout.attention),
    ):
        layout.output.loss_sum(model, model_inputs(batch), batch)
    handle.remove()
    assert seen == [(1, 0, 400)]
    assert max(kept) < batch["counts"]["supervised"] * 400


def test_the_models_own_attention_is_back_afterwards():
    model = build_model("llama")
    before = model.config._attn_implementation
    with isolated_documents(model, layout_of(model).attention):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before


def test_a_saved_configuration_does_not_name_our_attention(tmp_path):
    model = build_model("llama")
    with isolated_documents(model, layout_of(model).attention):
        model.save_pretrained(tmp_path)
    assert "sft_documents" not in (tmp_path / "config.json").read_text()


def test_output_layer_that_scales_its_scores_is_not_taken_for_their_product():
    import transformers

    torch.manual_seed(0)
    size = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
    model = transformers.GraniteForCausalLM(transformers.GraniteConfig(**size, logits_scaling=4.0)).train()
    found = ours(model, rows())
    assert found[2].output.chunk_bytes is None
    assert_same(found, plain(model, rows()))


def test_output_layer_takes_a_model_without_logits_to_keep():
    """Everything is asked of the model's signature, nothing of its name."""
    model = build_model("llama")
    output = OutputLayer(model, None)
    output._keeps_positions = False
    batch = FlatCollator(0)(rows())
    layout = layout_of(model)
    with isolated_documents(model, layout.attention):
        arguments = (model, model_inputs(batch), batch)
        torch.testing.assert_close(output.loss_sum(*arguments), layout.output.loss_sum(*arguments))
