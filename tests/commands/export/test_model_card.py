"""The model card: metadata as the Hub reads it, and untrusted text that stays text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from sft.commands.export.card_metadata import hub_datasets, is_hub_name, public_name
from sft.commands.export.model_card import CardFacts, model_card
from sft.reporting.run_record import RunRecord
from tests.support.rendered_markdown import ATTACKS, HIDDEN, active_tags, renderings, text_of

SCORES = {"loss": 0.5, "perplexity": 1.65, "token_accuracy": 0.9, "sequence_accuracy": 0.25}
OWN_TAGS = {"h1", "h2", "ul", "li"}
"""Tags of the card's own headings and lists."""


def facts(*, settings=None, text="plain", **summary) -> CardFacts:
    """A card with a text wherever a run or a user can bring text."""
    source = {"name": text, "format_name": text, "rows_read": 2, "rows_used": 1, "rows_dropped": {text: 1}}
    defaults = {
        "eval_before": {"loss": 7.0},
        "eval_after": SCORES,
        "train": {"steps": 3},
        "data": {"train": {"sources": [source]}, "validation": {"sources": [source]}},
        "samples": [{"prompt": text, "before": text, "after": text}],
        "versions": {"torch": text},
    }
    record = RunRecord(
        settings={"lr_scheduler_type": text, "lora_config": {"r": text}, **(settings or {})},
        summary=defaults | summary,
    )
    return CardFacts(
        name=text, base=text, record=record, is_checkpoint=False, chat_example=text, exported=[text, "Merged."]
    )


@pytest.mark.parametrize("kind", ATTACKS)
def test_untrusted_text_in_the_card_stays_text(kind):
    text = ATTACKS[kind]
    card = model_card(facts(text=text))
    assert not HIDDEN & set(card)
    body = ModelCard(card, ignore_metadata_errors=True).text
    plain = ModelCard(model_card(facts())).text
    for renderer, html in renderings(body).items():
        assert not active_tags(html) - OWN_TAGS, renderer
        expected = re.findall(r"<h\d", renderings(plain)[renderer])
        assert re.findall(r"<h\d", html) == expected, renderer
        assert "Merged." in text_of(html), renderer


def test_metadata_is_what_the_hub_reads():
    settings = {"dataset_name": "HuggingFaceH4/no_robots", "datasets": [{"name": "owner/rows"}, {"path": "a.jsonl"}]}
    source = {"name": "owner/rows", "format_name": "messages", "rows_read": 9, "rows_used": 9}
    data = {"train": {"sources": [source]}, "validation": {"sources": [source]}}
    card = model_card(replace(facts(settings=settings, data=data), name="my-model", base="owner/base"))
    found = ModelCard(card).data
    assert (found.license, found.library_name, found.pipeline_tag) == ("unknown", "transformers", "text-generation")
    assert (found.base_model, found.datasets) == ("owner/base", ["HuggingFaceH4/no_robots", "owner/rows"])
    assert found.model_name == "my-model"
    results = {result.metric_name: (result.metric_type, result.metric_value) for result in found.eval_results}
    assert results == {
        "validation loss": ("loss", 0.5),
        "perplexity": ("perplexity", 1.65),
        "token accuracy": ("accuracy", 0.9),
        "sequence accuracy": ("exact_match", 0.25),
    }
    assert {result.dataset_type for result in found.eval_results} == {"owner/rows"}


def test_metadata_of_local_data_names_no_dataset_of_the_hub():
    source = {"name": "/home/me/rows.jsonl", "format_name": "messages", "rows_read": 9, "rows_used": 9}
    card = model_card(facts(data={"train": {"sources": [source]}, "validation": {"sources": [source]}}))
    found = ModelCard(card).data
    assert found.datasets is None
    assert {(result.dataset_type, result.dataset_name) for result in found.eval_results} == {("local", "rows.jsonl")}
    assert "/home/me" not in card


@pytest.mark.parametrize("scores", [None, {}, {"loss": None}, {"loss": float("nan")}])
def test_metadata_without_scores_has_no_model_index(scores):
    assert "model-index" not in model_card(facts(eval_after=scores))
    assert "model-index" not in model_card(replace(facts(), is_checkpoint=True))


def test_names_on_the_hub_are_distinguished_from_paths(tmp_path):
    (tmp_path / "here").mkdir()
    assert [is_hub_name(name) for name in ("gpt2", "owner/model", "/a/b", "./a", "~/a", "a/b/c", "a b")] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]
    assert not is_hub_name(str(tmp_path / "here"))
    assert public_name("/home/me/model") == "model"
    assert public_name("owner/model") == "owner/model"
    assert hub_datasets({"dataset_name": "a/b", "datasets": [{"name": "a/b"}, {"name": "./rows"}, {"path": "x"}]}) == [
        "a/b"
    ]
