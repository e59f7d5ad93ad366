"""The list of transformers' private names is complete, and the installed version has them as listed."""

from __future__ import annotations

import inspect
import re

from transformers import Trainer, TrainingArguments, core_model_loading

from sft.training.transformers_private import OVERRIDDEN, WRITTEN, WRITTEN_ARGUMENTS, WRITTEN_MODEL
from tests.support.paths import REPOSITORY
from trainer_utils import SFTTrainer


def own_classes():
    return [cls for cls in SFTTrainer.__mro__ if not cls.__module__.startswith(("transformers", "builtins"))]


def test_every_private_method_that_is_overridden_is_listed():
    overridden = {
        name for cls in own_classes() for name in vars(cls) if re.match(r"_[a-z]", name) and hasattr(Trainer, name)
    }
    assert overridden == set(OVERRIDDEN)


def test_the_installed_version_has_each_method_with_these_parameters():
    for name, parameters in OVERRIDDEN.items():
        _self, *found = inspect.signature(getattr(Trainer, name)).parameters
        assert tuple(found) == parameters, name


def test_every_private_attribute_that_is_used_is_listed_and_exists():
    source = inspect.getsource(inspect.getmodule(Trainer))
    for name in WRITTEN:
        assert f"self.{name}" in source, name
    used = set()
    for path in [REPOSITORY / "trainer_utils.py", *(REPOSITORY / "sft").rglob("*.py")]:
        used.update(re.findall(r"trainer\.(_[a-z]\w*)", path.read_text(encoding="utf-8")))
    assert used == set(WRITTEN)


def test_saving_reads_the_attribute_of_a_model_that_is_set():
    source = inspect.getsource(core_model_loading.revert_weight_conversion)
    assert all(f'"{name}"' in source for name in WRITTEN_MODEL)
    used = set()
    for path in (REPOSITORY / "sft").rglob("*.py"):
        used.update(re.findall(r"\bmodel\.(_[a-z]\w*) = ", path.read_text(encoding="utf-8")))
    assert used == set(WRITTEN_MODEL)


def test_a_process_with_several_visible_gpus_uses_one(monkeypatch, prepare):
    """`n_gpu` above 1 makes Trainer wrap the model in DataParallel."""
    (name,) = WRITTEN_ARGUMENTS
    usual = TrainingArguments.__post_init__

    def with_two(arguments):
        usual(arguments)
        setattr(arguments, name, 2)

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_two)
    prepared, _ = prepare()
    assert prepared.trainer.args.n_gpu == 1
