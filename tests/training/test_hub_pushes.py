"""Pushes to the Hub that fail: one log line, and training continues."""

from __future__ import annotations

from tests.support import messages


def test_an_unreachable_hub_is_logged_and_the_saved_model_has_its_own_exit_code(run_sft, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    run = run_sft(
        push_to_hub=True, hub_model_id="me/mine", hub_token="hf_secret", max_steps=4, save_steps=2, sample_prompts="[]"
    )
    assert run.status == 3, run.err
    assert run.out.count(messages.CANNOT_PUSH) == 1
    assert run.out.count(messages.NOT_PUSHED) == 1
    assert messages.UPLOAD_WITH.format(name="me/mine", path=run.output_dir) in run.out
    assert run.summary["status"] == "completed"
    assert "Connect" in run.summary["push_to_hub"]
    assert (run.output_dir / "model.safetensors").is_file()
    assert sorted(path.name for path in run.output_dir.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not any(b"hf_secret" in path.read_bytes() for path in run.output_dir.rglob("*") if path.is_file())
