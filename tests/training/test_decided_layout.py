"""What trials on a model decided: the same on all processes, and used again by a resumed run."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sft.checkpointing.resume_point import ResumePoint
from sft.common.run_records import BatchPlan, Precision
from sft.configuration.schema import TrainingConfig
from sft.modeling.document_attention import attention_of
from sft.reporting.environment import compute_environment
from sft.training import row_layout
from sft.training.decided_layout import TRIED, LayoutFindings, restore_attention, saved_findings
from sft.training.run_identity import DataDigests, RunIdentity, decision_lines
from tests.support import messages
from tests.support.layouts import layout_of
from tests.support.setups import config_of
from tests.support.small_models import build_model

KEPT = LayoutFindings(
    is_padding_free=True,
    obstacle=None,
    shares_prefixes=True,
    uses_output_layer=True,
    attention="sdpa",
    reason="as in checkpoint-4",
)
PADDED = replace(KEPT, is_padding_free=False, obstacle="the model was odd", shares_prefixes=False)
AUTO = {"per_device_train_batch_size": "auto"}
SETTINGS = {"padding_free": "auto", "attn_implementation": None, "share_prefixes": True}


def checkpoint(trials=KEPT, **settings):
    manifest = {"configuration": SETTINGS | settings, "trials": trials and asdict(trials)}
    return ResumePoint(path=Path("out/checkpoint-4"), step=4, manifest=manifest)


@pytest.mark.parametrize("trials", [KEPT, PADDED, replace(KEPT, reason=TRIED)])
def test_saved_findings_are_those_of_the_checkpoint(trials):
    found = saved_findings(checkpoint(trials), config_of(TrainingConfig()))
    assert found == replace(trials, reason="as in checkpoint-4")


@pytest.mark.parametrize("changed", [{"padding_free": False}, {"padding_free": True}, {"attn_implementation": "eager"}])
def test_saved_findings_yield_to_a_changed_setting(changed, caplog):
    with caplog.at_level("INFO", "sft.train"):
        assert saved_findings(checkpoint(**changed), config_of(TrainingConfig())) is None
        assert saved_findings(None, config_of(TrainingConfig())) is None
    assert caplog.messages == []


def test_shared_leading_tokens_are_tried_where_the_setting_was_off():
    saved = checkpoint(replace(KEPT, shares_prefixes=False), share_prefixes=False)
    found = saved_findings(saved, config_of(TrainingConfig()))
    assert found is not None
    assert found.shares_prefixes


def test_a_checkpoint_without_the_record_is_one_line(caplog):
    with caplog.at_level("INFO", "sft.train"):
        assert saved_findings(checkpoint(None), config_of(TrainingConfig())) is None
    assert len(caplog.messages) == 1
    assert messages.TRIALS_NOT_RECORDED.format(name="checkpoint-4") in caplog.text


@pytest.mark.parametrize(
    "kept",
    [
        KEPT,
        PADDED,
        replace(KEPT, shares_prefixes=False),
        replace(KEPT, shares_prefixes=False, sharing_obstacle="dropout was set"),
        replace(KEPT, uses_output_layer=False),
        replace(PADDED, uses_output_layer=False),
    ],
)
def test_a_resumed_run_uses_what_the_earlier_one_used(kept, caplog):
    with caplog.at_level("INFO", "sft.train"):
        layout = layout_of(build_model("llama"), kept=kept)
    assert layout.findings == kept
    assert layout.is_padding_free == kept.is_padding_free
    assert getattr(layout.collator, "shares_prefixes", False) == kept.shares_prefixes
    assert (layout.output.chunk_bytes is not None) == kept.uses_output_layer
    assert layout.describe().endswith(messages.AS_IN.format(name="checkpoint-4"))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("model", "settings", "lost"),
    [
        ("bloom", {}, ["padding-free batches: the model lets one document influence another"]),
        ("gemma2", {}, ["the loss at the output layer"]),
        ("llama", {"extra_training_arguments": {"neftune_noise_alpha": 5.0}}, ["computed once: neftune_noise_alpha"]),
        ("gpt2", {}, ["shared leading tokens"]),
    ],
)
def test_what_is_no_longer_possible_is_one_line(model, settings, lost, caplog):
    with caplog.at_level("INFO", "sft.train"):
        layout = layout_of(build_model(model), kept=KEPT, **settings)
    assert len([record for record in caplog.records if record.name.startswith("sft")]) == 1
    assert caplog.text.count(messages.NO_LONGER_AS.format(name="checkpoint-4")) == 1
    assert all(each in caplog.text for each in lost)
    assert layout.findings.reason == TRIED


@pytest.mark.parametrize(
    ("other", "padding_free", "shares", "at_output"),
    [
        ({}, True, True, True),
        ({"obstacle": "the model fails"}, False, False, True),
        ({"sharing_obstacle": "its dropout differs"}, True, False, True),
        ({"uses_output_layer": False}, True, True, False),
    ],
)
def test_all_processes_use_what_each_of_them_found(monkeypatch, other, padding_free, shares, at_output):
    asked = iter(["kernel_obstacle", "obstacle", "sharing_obstacle"])
    monkeypatch.setattr(row_layout, "agree_on_problem", lambda value, _: value or other.get(next(asked)))
    monkeypatch.setattr(
        row_layout, "agree_on_smallest", lambda value, _: min(value, other.get("uses_output_layer", value))
    )
    layout = layout_of(build_model("llama"))
    found = layout.findings
    assert (layout.is_padding_free, found.shares_prefixes, found.uses_output_layer) == (padding_free, shares, at_output)
    assert (messages.PADDING_FREE if padding_free else "the model fails") in layout.describe()


@pytest.mark.parametrize(
    ("saved", "requested", "used", "line"),
    [
        ("sdpa", None, "sdpa", None),
        ("eager", None, "eager", "eager (as in checkpoint-4) is used, where transformers would choose sdpa"),
        ("flash_attention_9", None, "sdpa", "(as in checkpoint-4) is not available here: sdpa is used"),
        ("eager", "sdpa", "sdpa", None),
    ],
)
def test_restore_attention(saved, requested, used, line, caplog):
    model = build_model("llama")
    with caplog.at_level("INFO", "sft.train"):
        restore_attention(model, replace(KEPT, attention=saved), requested)
    assert attention_of(model) == used
    assert len(caplog.messages) == (line is not None)
    assert line is None or line in caplog.text


@pytest.mark.parametrize(
    ("trials", "asked", "saved_plan", "expected"),
    [
        (replace(KEPT, reason=TRIED), {}, None, ["rows: padding-free (tried on the model)", "per device (as set)"]),
        (PADDED, {}, None, ["rows: padded, since the model was odd (as in checkpoint-4)"]),
        (replace(PADDED, obstacle=None), {}, None, ["rows: padded (padding_free: false)"]),
        (KEPT, AUTO, None, ["per device (found by trial)"]),
        (KEPT, AUTO, {"asked": AUTO, "world_size": 1}, ["per device (as in checkpoint-4)"]),
        (KEPT, AUTO, {"asked": AUTO, "world_size": 2}, ["per device (found by trial)"]),
        (KEPT, {}, {"asked": {}, "world_size": 1}, ["per device (as set)"]),
    ],
)
def test_decision_lines_name_each_decision_with_its_reason(trials, asked, saved_plan, expected):
    resume = saved_plan and ResumePoint(path=Path("checkpoint-4"), step=4, manifest={"batch_plan": saved_plan})
    identity = RunIdentity(
        configuration={},
        configuration_sha256="",
        data=DataDigests(train="", train_rows=1),
        wandb_run_id="",
        precision=Precision(weights="float32", mixed="no", reason="auto\nhere"),
        layout="padding-free" if trials.is_padding_free else "padded",
        trials=trials,
        environment=compute_environment("cpu", reuses_freed_memory=True),
    )
    plan = BatchPlan(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        world_size=1,
        steps_per_epoch=1,
        total_steps=1,
        asked=asked,
    )
    lines = decision_lines(identity, plan, resume)
    assert all("\n" not in line for line in lines)  # each is a comment of the resolved configuration
    for each in expected:
        assert any(each in line for line in lines), each
