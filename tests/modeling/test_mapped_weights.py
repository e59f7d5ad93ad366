"""Weights that stay in their files until they are sharded have the same values as weights that are cast on loading."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn

from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import LoRAConfig, ModelConfig
from sft.modeling.fitting import fit_to_tokenizer
from sft.modeling.footprint import footprint
from sft.modeling.loading import load_pretrained_model
from sft.modeling.mapped_weights import is_mapped
from sft.modeling.sharding import shard_weights
from tests.support import forked
from tests.support.small_models import build_model, build_tokenizer

CONTEXT = DistributedContext(world_size=2)


def save_narrow(architecture, folder, dtype=torch.bfloat16, **settings):
    build_model(architecture).to(dtype).save_pretrained(folder, **settings)
    return str(folder)


def load(folder, *, maps=True, weights="float32", lora=None):
    return load_pretrained_model(
        ModelConfig(model_name_or_path=folder),
        lora,
        None,
        Precision(weights=weights, mixed="no"),
        CONTEXT,
        is_to_be_sharded=maps,
    )


def tensors(model):
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: getattr(tensor, "_local_tensor", tensor).detach().clone() for name, tensor in found.items()}


def check_shards(folders):
    distributed.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=2)
    torch.set_num_threads(1)
    for folder in folders:
        seen = []
        for maps in (False, True):
            model = load(folder, maps=maps)
            assert model.dtype == (torch.bfloat16 if maps else torch.float32)
            size = dataclasses.asdict(footprint(model, least_bytes=4))
            shard_weights(model, "cpu", 2, weights=torch.float32, mixed="no", reshard_after_forward=True)
            seen.append((model.config.to_dict(), model.generation_config.to_dict(), size, tensors(model)))
        (*facts, ours), (*expected, theirs) = seen[1], seen[0]
        assert facts == expected
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype
            assert torch.equal(ours[name], tensor), name
    distributed.destroy_process_group()
    return 0


def test_shards_equal_those_of_weights_that_were_cast_on_loading(tmp_path):
    """All weights, a head tied to the embedding, and weights in several files."""
    folders = [
        save_narrow("llama", tmp_path / "llama"),
        save_narrow("qwen2", tmp_path / "tied"),
        save_narrow("gpt2", tmp_path / "split", max_shard_size="30KB"),
    ]
    assert len([*(tmp_path / "split").glob("model-*.safetensors")]) > 1
    done = forked.call(tmp_path, check_shards, folders, processes=2)
    assert done.status == 0, done.err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_stay_in_the_mapped_file(tmp_path):
    model = load(save_narrow("llama", tmp_path, torch.float16))
    assert model.dtype == torch.float16
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[0].split("-") for line in lines if line.endswith(f"{tmp_path}/model.safetensors")]
    for weight in model.parameters():
        assert any(int(start, 16) <= weight.data_ptr() < int(end, 16) for start, end in mapped)


def test_new_embeddings_are_computed_from_wide_ones(tmp_path):
    folder, tokenizer, seen = save_narrow("llama", tmp_path), build_tokenizer(), []
    tokenizer.add_tokens([f"<new {number}>" for number in range(700)])
    for maps in (False, True):
        model = load(folder, maps=maps)
        torch.manual_seed(0)
        fit_to_tokenizer(model, tokenizer, 16, adapters_only=False)
        assert model.dtype == torch.float32
        seen.append(tensors(model))
    assert all(torch.equal(seen[1][name], tensor) for name, tensor in seen[0].items())


def mix_types(folder):
    weights = load_file(f"{folder}/model.safetensors")
    weights["model.norm.weight"] = torch.full((32,), 1 + 2.0**-20)
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})


def as_pickle(folder):
    torch.save(load_file(f"{folder}/model.safetensors"), f"{folder}/pytorch_model.bin")
    os.remove(f"{folder}/model.safetensors")


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (mix_types, {}),
        (as_pickle, {}),
        (None, {"lora": LoRAConfig(r=4)}),  # adapters are initialized in the dtype of the weights
        (None, {"weights": "bfloat16"}),
        (None, {"maps": False}),
    ],
)
def test_other_weights_are_cast_on_loading(tmp_path, change, options):
    folder = save_narrow("llama", tmp_path)
    if change is not None:
        change(folder)
    model = load(folder, **options)
    expected = getattr(torch, options.get("weights", "float32"))
    assert {weight.dtype for name, weight in model.named_parameters() if "lora" not in name} == {expected}
    if change is mix_types:
        assert torch.equal(model.model.norm.weight.data, torch.full((32,), 1 + 2.0**-20))


def test_a_model_with_a_buffer_of_the_default_dtype_is_cast_on_loading(tmp_path):
    folder = save_narrow("llama", tmp_path)
    model = load(folder)
    assert is_mapped(model, folder, torch.bfloat16)
    assert not is_mapped(model, folder, torch.float16)
    model.scale = nn.Buffer(torch.ones(1, dtype=torch.bfloat16))
    assert not is_mapped(model, folder, torch.bfloat16)
    del model.scale
    (tmp_path / "model.safetensors").unlink()
    assert not is_mapped(model, folder, torch.bfloat16)
