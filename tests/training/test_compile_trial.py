"""Whether layers are compiled: what the trial concludes, that it leaves no trace, and that a resumed run keeps it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from config_manager import load_config
from data_handler import prepare_data
from sft.batching.plan import resolve_batch_plan
from sft.modeling.compiling import repeated_layers
from sft.training import compile_trial
from sft.training.compile_trial import CompileTrial, settle_layout
from sft.training.memory_probe import TimedPass
from sft.training.model_preparation import prepare_model
from tests.support.setups import CPU, FLOAT32
from tests.support.small_models import build_model, build_tokenizer


def trial(plain=1.0, compiled=0.8, *, loss=2.0, compiled_loss=2.01, norm=1.0, compiled_norm=1.0, dropout=False):
    return CompileTrial(
        plain=[TimedPass(seconds=plain, loss=loss, gradient_norm=norm)] * 3,
        compiled=[TimedPass(seconds=compiled, loss=compiled_loss, gradient_norm=compiled_norm)] * 3,
        first_seconds=30.8,
        draws_dropout=dropout,
    )


@pytest.mark.parametrize(
    ("tried", "passes_left", "obstacle"),
    [
        (trial(), 151, None),
        (trial(), 149, "the run is too short: 31 s to compile, then"),
        (trial(compiled=0.98), 10**6, "it would not be faster (0.980 s a micro-batch with compiled layers, 1.000 s"),
        (trial(compiled_loss=2.2), 10**6, "compiled layers compute another loss (2.2, not 2)"),
        (trial(compiled_loss=float("nan")), 10**6, "compiled layers compute another loss (nan, not 2)"),
        (trial(compiled_norm=0.5), 10**6, "compiled layers compute another gradient norm (0.5, not 1)"),
        (trial(compiled_loss=2.2, dropout=True), 10**6, None),
    ],
)
def test_what_the_trial_concludes(tried, passes_left, obstacle):
    found = tried.obstacle(passes_left)
    assert found is None if obstacle is None else found.startswith(obstacle)


@pytest.fixture
def settled(question_file, tmp_path):
    """Settles the layout of a small model on the CPU: (before, after)."""

    def settle(*settings, resume=None, is_dry_run=False):
        config = load_config(
            None,
            [
                "--model_name_or_path=m",
                f"--train_file={question_file}",
                "--max_seq_length=64",
                f"--output_dir={tmp_path}",
                "--torch_compile_backend=aot_eager",
                *settings,
            ],
        )
        data = prepare_data(config.data, build_tokenizer(), seed=1)
        model, tokenizer = build_model("llama"), build_tokenizer()
        prepared = prepare_model(config, model, tokenizer, FLOAT32, CPU, is_chat=True)
        plan = resolve_batch_plan(
            config.training, data.num_train_rows, CPU, lengths=data.train.lengths, max_seq_length=64
        )
        return prepared, settle_layout(config, data, prepared, plan, CPU, resume, is_dry_run=is_dry_run)

    return settle


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Takes the CPU for a GPU in the decision; the passes run here."""
    decide = compile_trial._may_compile
    monkeypatch.setattr(compile_trial, "_may_compile", lambda config, layout, device: decide(config, layout, "cuda:0"))


def is_compiled(model):
    return all(layer._compiled_call_impl is not None for layer in repeated_layers(model))


@pytest.mark.parametrize("pays", [True, False])
def test_the_trial_compiles_or_leaves_no_trace(settled, on_a_gpu, monkeypatch, caplog, pays):
    monkeypatch.setattr(CompileTrial, "obstacle", lambda self, left: None if pays else "it would not be faster")
    with caplog.at_level("INFO", logger="sft.train"):
        before, after = settled("--packing=true", "--per_device_train_batch_size=2")
    assert after.layout.findings.compiles_layers is pays
    assert after.layout.has_fixed_shape is pays
    assert is_compiled(after.model) is pays
    assert ("Layers are compiled" in caplog.text) is pays
    assert all(weight.grad is None for weight in after.model.parameters())
    assert after.layout.collator.shares_prefixes is not pays
    if pays:
        assert after.layout.collator.fixed_tokens == 2 * 64
    else:
        assert replace(after.layout.findings, compiles_layers=None) == before.layout.findings


def test_a_trial_that_fails_is_logged(settled, on_a_gpu, caplog):
    with caplog.at_level("INFO", logger="sft.train"):
        _, after = settled("--packing=true", "--torch_compile_backend=unknown")
    assert not after.layout.findings.compiles_layers
    assert "Layers are not compiled (torch_compile: auto): the trial failed (" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["--packing=true", "--full_determinism=true"],
    ],
    ids=["batches of all sizes", "full determinism"],
)
def test_where_nothing_is_tried(settled, on_a_gpu, settings):
    _, after = settled(*settings)
    assert after.layout.findings.compiles_layers is None
    assert not any(layer._compiled_call_impl for layer in repeated_layers(after.model))


def test_a_cpu_and_a_dry_run_try_nothing(settled):
    _, after = settled("--packing=true")
    assert after.layout.findings.compiles_layers is None


def test_a_resumed_run_keeps_the_decision(settled, on_a_gpu, monkeypatch, caplog):
    monkeypatch.setattr(compile_trial, "_pays", lambda *arguments: pytest.fail("tried again"))
    kept = replace(settled("--packing=true", is_dry_run=True)[0].layout.findings, reason="as in checkpoint-3")
    for decision in (True, False):
        monkeypatch.setattr(
            compile_trial, "saved_findings", lambda *_, found=decision: replace(kept, compiles_layers=found)
        )
        _, after = settled("--packing=true")
        assert after.layout.findings.compiles_layers is decision
        assert after.layout.has_fixed_shape is decision


def test_a_real_trial_compares_the_same_numbers(settled, on_a_gpu, monkeypatch):
    tried = []
    monkeypatch.setattr(CompileTrial, "obstacle", lambda self, left: tried.append(self) or "enough")
    settled("--packing=true", "--per_device_train_batch_size=2")
    (only,) = tried
    assert only.compiled[-1].loss == pytest.approx(only.plain[-1].loss, rel=1e-5)
    assert only.compiled[-1].gradient_norm == pytest.approx(only.plain[-1].gradient_norm, rel=1e-4)
