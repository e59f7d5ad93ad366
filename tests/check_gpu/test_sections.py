"""The checks on the CPU: they pass, and fail where what they check is broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sft.check_gpu import fitting_shape as fitting
from sft.check_gpu.bench import Bench
from sft.check_gpu.options import read_options
from sft.check_gpu.outcome import FAIL, PASS, SKIP
from sft.check_gpu.program import FinishedRun
from sft.check_gpu.section_process import run_section
from sft.check_gpu.sections import SECTIONS, attention, recovery, several
from sft.check_gpu.shapes import SHAPES
from tests.support import forked

SLOW = ("several", "determinism")
"""The first starts processes that start processes; the second makes the runs of `recovery` again."""


def section_on_cpu(name: str, folder: Path) -> int:
    options = ["--device=cpu", "--seconds=100000", f"--section={name}", f"--folder={folder}"]
    return run_section(name, read_options(options))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SECTIONS])
def test_sections_pass_on_cpu(tmp_path, name):
    done = forked.call(tmp_path / "output", section_on_cpu, name, tmp_path)
    assert done.status == 0, done.err
    checks = [json.loads(line) for line in done.out.splitlines()]
    assert [check for check in checks if check["status"] == FAIL] == []
    assert [check for check in checks if check["status"] == PASS], checks
    assert all(set(check) == {"name", "status", "figure", "values"} for check in checks)


@pytest.fixture
def bench(tmp_path):
    return Bench("cpu", tmp_path, is_quick=True)


def statuses(cases):
    return {case.name: case.check().status for case in cases}


def test_wrong_attention_fails(bench, monkeypatch):
    attend = attention.attend_within_documents

    def with_another_scale(*inputs, scaling, **others):
        return attend(*inputs, scaling=0.9 * (scaling or inputs[1].shape[-1] ** -0.5), **others)

    monkeypatch.setattr(attention, "attend_within_documents", with_another_scale)
    found = statuses(attention.cases(bench))
    assert found.pop("a document does not change the others") == PASS
    assert set(found.values()) == {FAIL}


def test_attention_across_documents_fails(bench, monkeypatch):
    attend = attention.attend_within_documents

    def as_one_document(*inputs, cu_seq_lens_q, **others):
        ends = torch.tensor([0, int(cu_seq_lens_q[-1])], dtype=torch.int32)
        return attend(*inputs, cu_seq_lens_q=ends, **{**others, "document_lengths": None})

    monkeypatch.setattr(attention, "attend_within_documents", as_one_document)
    assert statuses(attention.cases(bench))["a document does not change the others"] == FAIL


class Finished(FinishedRun):
    """A run with given results."""

    def __init__(self, losses, weights):
        self._losses, self._weights = losses, weights

    @property
    def losses(self):
        return self._losses

    def weights(self):
        return self._weights


@pytest.mark.parametrize(
    ("loss", "weight", "status"), [(2.0, 1.0, PASS), (2.0, 1.0000001, FAIL), (2.0000001, 1.0, FAIL), (0.0, 1.0, FAIL)]
)
def test_other_bits_fail(bench, loss, weight, status):
    right = Finished({1: 3.0, 2: 2.0 if loss else 0.0}, {"w": torch.ones(3)})
    other = Finished({2: loss}, {"w": torch.full((3,), weight)})
    assert recovery._Runs(bench)._compared(right, other).status == status


def test_rounding_is_allowed_on_a_gpu_without_full_determinism(bench):
    bench.device = "cuda:0"
    right, other = (Finished({1: loss}, {"w": torch.full((3,), loss)}) for loss in (2.0, 2.0001))
    assert recovery._Runs(bench)._compared(right, other).status == PASS
    bench.full_determinism = True
    assert recovery._Runs(bench)._compared(right, other).status == FAIL


def test_models_have_as_many_layers_as_fit(bench, monkeypatch):
    found = []
    for gib in (79, 24, 12, 4):
        monkeypatch.setattr(fitting, "available_memory_bytes", lambda device, gib=gib: gib * 2**30)
        fits = fitting.fitting_shape(bench, SHAPES["1.2b"], tokens=4096, has_adapters=False, checkpointing=True)
        found.append(fits and fits.num_layers)
    assert found[0] == SHAPES["1.2b"].num_layers
    assert 16 > found[1] > found[2] > 0
    assert found[3] is None


def test_the_name_of_a_smaller_model_says_so():
    full = SHAPES["8b"]
    assert fitting.shape_text("8B", full, full) == "8B"
    assert fitting.shape_text("8B", full, replace(full, num_layers=12)) == "8B, 12 of 32 layers"


def test_checks_of_a_gpu_alone_are_skipped_with_a_reason(bench):
    checks = {case.name: case.check for case in recovery.cases(bench)}
    outcome = checks["out of memory, retried in chunks"]()
    assert (outcome.status, bool(outcome.figure)) == (SKIP, True)


class Timed(Finished):
    """A run with the losses, the weights and the time of a step that it is given."""

    def __init__(self, loss=2.0, seconds=(0.2, 0.1, 0.1)):
        super().__init__({1: loss}, {"w": torch.full((3,), loss)})
        self._seconds = list(seconds)

    @property
    def seconds_per_step(self):
        return self._seconds


@pytest.mark.parametrize(
    ("device", "runs", "found", "text"),
    [
        ("cpu", {}, [PASS, PASS], "100.0 ms a step, 100.0 ms with one bucket, 100.0 ms alone: 0% hidden (not judged"),
        ("cuda:0", {"afterwards": Timed(seconds=[0.2]), "alone": Timed(seconds=[0.05])}, [PASS, PASS], "67% hidden"),
        ("cuda:0", {"overlapping": Timed(seconds=[0.2]), "float32": Timed(2.1)}, [FAIL, FAIL], "0% hidden"),
        ("cuda:0", {"alone": Timed(seconds=[])}, [PASS, FAIL], "no speed"),
    ],
)
def test_two_processes_are_compared_with_one(bench, monkeypatch, device, runs, found, text):
    settings = {}

    def run(bench, name, *args, **given):
        settings[name] = given
        return runs.get(name.removeprefix("two-"), Timed())

    monkeypatch.setattr(several, "run", run)
    monkeypatch.setattr(several, "save_small_model", lambda bench: None)
    monkeypatch.setattr(several, "num_usable_cores", lambda: 2)
    bench.device, bench.num_gpus, bench.backend = device, 2, "gloo"
    outcomes = [case.check() for case in several.cases(bench)]
    assert [outcome.status for outcome in outcomes] == found
    assert text in outcomes[1].figure
    together = {name: given for name, given in settings.items() if name.startswith("two-")}
    assert list(settings)[:3] == list(together)  # before any run of one process hides the other GPU
    assert {(given["num_gpus"], given["ddp_backend"]) for given in together.values()} == {(2, "gloo")}


@pytest.mark.parametrize(("device", "needed"), [("cpu", "two cores"), ("cuda:0", "two GPUs")])
def test_one_device_alone_is_not_compared(bench, monkeypatch, device, needed):
    monkeypatch.setattr(several, "num_usable_cores", lambda: 1)
    bench.device, bench.num_gpus = device, 1
    (outcome,) = [case.check() for case in several.cases(bench)]
    assert (outcome.status, outcome.figure) == (SKIP, f"{needed} are needed")
