"""Conversion to GGUF."""

from __future__ import annotations

from tests.support import messages


def test_a_gguf_file_is_made_by_the_converter_that_is_named(export, model_folder, tmp_path):
    """A stand-in for llama.cpp's script, with its options."""
    converter = tmp_path / "llama.cpp" / "convert_hf_to_gguf.py"
    converter.parent.mkdir()
    converter.write_text(
        "import argparse, pathlib\nparser = argparse.ArgumentParser()\nparser.add_argument('model')\n"
        "parser.add_argument('--outfile')\nparser.add_argument('--outtype', choices=['f32', 'f16', 'bf16'])\n"
        "given = parser.parse_args()\nassert pathlib.Path(given.model, 'config.json').is_file()\n"
        "pathlib.Path(given.outfile).write_bytes(b'GGUF')\n"
    )
    status, out, err, output = export(model_folder("llama"), "--gguf", "--gguf_converter", str(converter.parent))
    assert (status, err) == (0, "")
    assert messages.SAVED.format(path=output / "exported-f32.gguf") in out
    assert (output / "exported-f32.gguf").read_bytes() == b"GGUF"
    converter.write_text("raise SystemExit('Model LlamaForCausalLM is not supported')")
    status, _, err, output = export(model_folder("llama"), "--gguf_converter", str(converter), name="second")
    assert status == 2
    said = messages.NOT_CONVERTED.format(path=output, converter=converter.name)
    assert err == f"{said}Model LlamaForCausalLM is not supported\n"
    assert (output / "model.safetensors").is_file()
