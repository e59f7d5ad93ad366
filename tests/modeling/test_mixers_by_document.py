"""Mixers that pass on what came before: found by trial, and run document by document by hooks alone."""

from __future__ import annotations

import inspect
import json
import sys

import pytest
import torch

from sft.batching.layout import model_inputs
from sft.modeling import document_attention, mixers_by_document
from sft.modeling.document_attention import isolated_documents
from sft.modeling.mixers_by_document import run_by_document
from tests.support import messages
from tests.support.architectures import build_architecture
from tests.support.layouts import assert_same, layout_of, loss_and_gradients, padded_loss_and_gradients, random_rows

FOUND = {
    "llama": (),
    "lfm2": ("model.layers.0.conv",),
    "falcon_h1": ("model.layers.0.mamba", "model.layers.1.mamba"),
    "nemotron_h": ("model.layers.0.mixer",),
    "qwen3_5": ("model.layers.0.linear_attn",),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_mixers_that_pass_something_on_are_found(name):
    model = build_architecture(name)
    layout = layout_of(model)
    assert layout.findings.mixers_by_document == FOUND[name]
    assert (messages.RUN_BY_DOCUMENT in layout.describe()) == bool(FOUND[name])


def test_nothing_but_hooks_is_added():
    model = build_architecture("lfm2")
    names, forward = list(model.state_dict()), model.model.layers[0].conv.forward
    layout_of(model)
    assert list(model.state_dict()) == names
    assert model.model.layers[0].conv.forward == forward
    assert "forward" not in vars(model.model.layers[0].conv)


def test_hooks_are_removed_where_rows_are_padded():
    model = build_architecture("lfm2")
    layout_of(model, extra_training_arguments={"deepspeed": "ds.json"})
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_generation_is_as_without_the_hooks():
    model = build_architecture("lfm2")
    ids = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    before = model.generate(ids, **options)
    layout_of(model)
    assert torch.equal(model.generate(ids, **options), before)


def test_a_row_of_one_document_is_one_call(monkeypatch):
    model = build_architecture("lfm2")
    layout = layout_of(model)
    calls = []
    plain = type(model.model.layers[0].conv).forward
    monkeypatch.setattr(
        type(model.model.layers[0].conv), "forward", lambda *args, **named: calls.append(1) or plain(*args, **named)
    )
    for rows, expected in ((random_rows()[:1], 1), (random_rows(), 6)):
        calls.clear()
        with torch.no_grad(), isolated_documents(model, layout.attention):
            model(**model_inputs(layout.collator(rows)))
        assert len(calls) == expected


def test_a_mixer_that_gets_no_boundaries_uses_those_of_the_row():
    """Some layers do not pass on what they do not know."""
    model = build_architecture("lfm2")
    rows = random_rows()
    expected = loss_and_gradients(model, rows)[0]
    conv = model.model.layers[0].conv
    own = type(conv).forward
    conv.register_forward_pre_hook(
        lambda _, args, named: (args, {"hidden_states": named["hidden_states"]}), with_kwargs=True
    )
    assert type(conv).forward is own
    assert loss_and_gradients(model, rows)[0] == expected


@pytest.fixture
def convolution_by_numbers(monkeypatch):
    """LFM2's convolution as the kernel of a package that is told the number of each token's document."""
    module = sys.modules[type(build_architecture("lfm2")).__module__]
    plain = inspect.unwrap(module.causal_conv1d_fn)

    def convolve(hidden, *args, seq_idx=None, **options):
        if seq_idx is None:
            return plain(hidden, *args)
        lengths = seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
        return torch.cat([plain(part, *args) for part in hidden.split(lengths, dim=2)], dim=2)

    monkeypatch.setattr(module, "causal_conv1d_fn", convolve)


def test_kernels_that_take_the_numbers_of_documents_get_them(convolution_by_numbers):
    model = build_architecture("lfm2")
    found = loss_and_gradients(model, random_rows())
    assert (found[2].findings.numbers_documents, found[2].findings.mixers_by_document) == (True, ())
    assert messages.TOLD_THE_DOCUMENTS in found[2].describe()
    assert_same(found, padded_loss_and_gradients(model, random_rows()))
    assert layout_of(build_architecture("lfm2"), kept=found[2].findings).findings == found[2].findings


def test_a_resumed_run_whose_kernels_are_gone_runs_document_by_document(convolution_by_numbers, monkeypatch, caplog):
    kept = layout_of(build_architecture("lfm2")).findings
    monkeypatch.undo()
    caplog.set_level("INFO", "sft.train")
    found = layout_of(build_architecture("lfm2"), kept=kept).findings
    assert (found.numbers_documents, found.mixers_by_document) == (False, FOUND["lfm2"])
    assert "kernels of mixers" in caplog.text


def test_a_resumed_run_keeps_the_mixers(monkeypatch):
    kept = layout_of(build_architecture("lfm2")).findings
    monkeypatch.setattr(mixers_by_document, "find_mixers", pytest.fail)
    assert layout_of(build_architecture("lfm2"), kept=kept).findings == kept


def test_a_module_of_another_name_is_an_error():
    with pytest.raises(AttributeError):
        run_by_document(build_architecture("lfm2"), ["model.layers.0.nothing"])


def test_what_a_checkpoint_records_is_plain_json():
    found = layout_of(build_architecture("lfm2")).findings
    assert json.loads(json.dumps(found.mixers_by_document)) == ["model.layers.0.conv"]


@pytest.mark.parametrize(
    ("name", "key", "what"),
    [("mistral", "sliding_window", "a sliding window of 32"), ("llama4", "attention_chunk_size", "chunks of 32")],
)
def test_a_window_that_attention_misses_is_seen_on_a_long_document(monkeypatch, name, key, what):
    monkeypatch.setattr(document_attention, "_reach", lambda *_: (None, None))
    layout = layout_of(build_architecture(name, **{key: 32}))
    assert not layout.is_padding_free
    assert messages.WINDOW_MISSED.format(what) in layout.describe()
