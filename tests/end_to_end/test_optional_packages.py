"""Each optional package, absent: what does not need it works, and what needs it names it in one line."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from transformers.utils import import_utils

import chat
import compare_runs
import sft_main
from sft.configuration.checks.packages import needs_bitsandbytes
from sft.data.sources import streams
from sft.processes.logs import configure_logging
from sft.processes.utilization import GpuUtilization
from tests.support import messages
from tests.support.saved_models import save_adapters


def forget_what_was_found() -> None:
    """transformers remembers which packages there are."""
    import_utils.is_bitsandbytes_available.cache_clear()
    import_utils.is_gguf_available.cache_clear()


@pytest.fixture
def remove(monkeypatch):
    """Makes a package look as if it were not installed."""

    def absent(name: str) -> None:
        for module in [*sys.modules]:
            if module == name or module.startswith(f"{name}."):
                monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
        forget_what_was_found()

    yield absent
    monkeypatch.undo()
    forget_what_was_found()
    logging.getLogger("sft").handlers.clear()


def test_without_matplotlib_a_run_finishes_with_a_line_for_the_picture(run_sft, remove):
    remove("matplotlib")
    run = run_sft(draws_curves=True, max_steps=2, report_to="tensorboard", sample_prompts="[]")
    assert (run.status, run.err) == (0, "")
    line = messages.NOT_DRAWN.format(path=run.output_dir / "training_curves.png")
    assert [each for each in run.out.splitlines() if "pip install" in each] == [
        f"{line} {messages.MISSING_PACKAGE.format(name='matplotlib')}. report.html shows the curves."
    ]
    assert not (run.output_dir / "training_curves.png").exists()
    assert run.summary["trackers"] == {"tensorboard": None}
    assert (run.output_dir / "report.html").is_file()


def test_without_matplotlib_runs_are_compared_as_text(tmp_path, capsys, remove):
    remove("matplotlib")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert compare_runs.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.endswith(
        messages.CURVES_NOT_DRAWN.format(reason=messages.MISSING_PACKAGE.format(name="matplotlib")) + "\n"
    )


@pytest.mark.parametrize(
    ("package", "setting", "message"),
    [
        ("wandb", {"report_to": "wandb"}, "report_to: wandb "),
        ("gguf", {"gguf_file": "model.gguf"}, "gguf_file: "),
        ("bitsandbytes", {"optim": "adamw_bnb_8bit"}, "optim: adamw_bnb_8bit "),
        (
            "bitsandbytes",
            {"quantization_config.load_in_4bit": True, "lora_config.r": 4},
            "quantization_config: ",
        ),
    ],
)
def test_a_setting_that_needs_a_missing_package_is_refused_and_others_are_not(
    capfd, model_folder, question_file, tmp_path, remove, package, setting, message
):
    remove(package)
    settings = {
        "model_name_or_path": model_folder("llama"),
        "train_file": question_file,
        "output_dir": tmp_path / "out",
        "max_seq_length": 64,
        "report_to": "none",
    }
    if package == "gguf":
        settings["model_name_or_path"] = "owner/model"
    arguments = [f"--{key}={value}" for key, value in (settings | setting).items()]
    assert sft_main.main([*arguments, "--dry_run"]) == 2
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1
    assert f"{message}{messages.MISSING_PACKAGE.format(name=package)}" in captured.err
    assert not (tmp_path / "out").exists()
    if package != "gguf":
        assert sft_main.main([*(f"--{key}={value}" for key, value in settings.items()), "--dry_run"]) == 0


def test_without_bitsandbytes_a_model_can_be_asked_but_not_in_4_bits(capfd, model_folder, tmp_path, remove):
    remove("bitsandbytes")
    adapters = save_adapters(model_folder("llama"), tmp_path / "adapters")
    arguments = [adapters, "--prompt", "Hi", "--max_new_tokens", "2", "--device", "cpu"]
    assert chat.main(arguments) == 0
    capfd.readouterr()
    assert chat.main([*arguments, "--load_in_4bit"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert messages.MISSING_PACKAGE.format(name="bitsandbytes") in line


def test_without_bitsandbytes_a_model_saved_in_4_bits_is_refused_in_one_line(capfd, model_folder, tmp_path, remove):
    folder = Path(model_folder("llama"))
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    remove("bitsandbytes")
    assert chat.main([str(tmp_path), "--prompt", "Hi", "--device", "cpu"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert messages.MODEL_NOT_LOADED in line
    assert "bitsandbytes" in line


def test_without_bitsandbytes_init_writes_a_configuration_and_names_the_package(
    capsys, model_folder, question_file, tmp_path, remove, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    remove("bitsandbytes")
    arguments = ["--init", "a.yaml", "--model", model_folder("llama"), "--data", question_file, "--method", "qlora"]
    assert sft_main.main(arguments) == 0
    assert f"qlora {messages.MISSING_PACKAGE.format(name='bitsandbytes')}" in capsys.readouterr().out
    assert sft_main.main(["--config_file", "a.yaml", "--print_config"]) == 2


def test_without_a_zstandard_package_only_zst_files_are_refused(run_sft, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "zstd", None)  # decided when the module is imported
    (tmp_path / "rows.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    run = run_sft("--dry_run", train_file=str(tmp_path / "rows.jsonl.zst"))
    assert run.status == 2
    assert run.err.count("\n") == 1
    assert messages.MISSING_PACKAGE.format(name="backports.zstd") in run.err


def test_without_nvidias_package_utilization_is_omitted_with_a_line(capsys, remove):
    remove("pynvml")
    configure_logging()
    assert GpuUtilization("cpu").read() is None
    assert GpuUtilization("cuda:0").read() is None
    missing = messages.MISSING_PACKAGE.format(name="nvidia-ml-py")
    assert capsys.readouterr().out == f"gpu_utilization is not logged: this {missing}.\n"


def test_the_optimizers_of_bitsandbytes_are_those_of_transformers():
    from transformers import trainer_optimizer
    from transformers.training_args import OptimizerNames

    theirs = {str(getattr(name, "value", name)) for name in trainer_optimizer._BITSANDBYTES_OPTIMIZERS}
    assert {name.value for name in OptimizerNames if needs_bitsandbytes(name.value)} == theirs
