"""Runs the command against a Hub on this machine, case by case: `tests/support/run_on_local_hub.py FOLDER CASE...`.

Not a test itself: `test_hub.py` starts it, since the libraries read where the Hub is when they are imported.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.local_hub import LocalHub, local_hub

REPOSITORY = Path(__file__).resolve().parents[2]
LOCAL_MODEL = f"--model_name_or_path={REPOSITORY / 'examples' / 'tiny-chat'}"
LOCAL_DATA = f"--train_file={REPOSITORY / 'examples' / 'data' / 'orders_validation.jsonl'}"


def cases(hub: LocalHub) -> dict[str, tuple[Callable[[], None], list[str]]]:
    """Name -> how the Hub misbehaves, and the run's settings. Each case has its own model, since models are cached."""

    def model(name: str) -> list[str]:
        shutil.copytree(REPOSITORY / "examples" / "tiny-chat", hub.root / "models" / "tester" / name)
        return [f"--model_name_or_path=tester/{name}"]

    def data(name: str) -> list[str]:
        folder = hub.root / "datasets" / "tester" / name
        folder.mkdir(parents=True)
        shutil.copy(REPOSITORY / "examples" / "data" / "orders_validation.jsonl", folder / "train.jsonl")
        return [f"--dataset_name=tester/{name}"]

    def revised(kind: str, name: str) -> list[str]:
        """A repository whose main branch is of no use."""
        given = (model if kind == "model" else data)(name)
        folder = hub.root / f"{kind}s" / "tester" / name
        folder.rename(folder.with_name(f"{name}@v2"))
        folder.mkdir()
        (folder / "README.md").write_text("moved\n")
        return given

    def is_now(**state: object) -> Callable[[], None]:
        usual = {"token": None, "gated": False, "silent_seconds": 0, "cut_downloads": 0}
        return lambda: [setattr(hub, name, value) for name, value in {**usual, **state}.items()] and None

    private, gated, cut = {"token": "hf_right"}, {"token": "hf_right", "gated": True}, {"cut_downloads": 1000}
    push = ["--max_steps=1", "--push_to_hub=true", "--hub_model_id=tester/result"]
    return {
        "by name": (is_now(), [*model("tiny"), *data("orders"), *push, "--hub_token=hf_secret"]),
        "revision": (
            is_now(),
            [*revised("model", "old"), *revised("dataset", "old"), "--model_revision=v2", "--dataset_revision=v2"]
            + ["--max_steps=1", "--lora_config.r=2"],
        ),
        "no revision": (is_now(), [*model("present"), "--model_revision=v3", LOCAL_DATA, "--dry_run"]),
        "no data revision": (is_now(), [LOCAL_MODEL, *data("present"), "--dataset_revision=v3", "--dry_run"]),
        "may not write": (is_now(**private), [LOCAL_MODEL, LOCAL_DATA, *push, "--hub_token=hf_secret"]),
        "no token": (is_now(**private), [LOCAL_MODEL, LOCAL_DATA, *push]),
        "interrupted": (is_now(cut_downloads=2), [*model("interrupted"), LOCAL_DATA, "--dry_run"]),
        "always interrupted": (is_now(**cut), [*model("broken"), LOCAL_DATA, "--dry_run"]),
        "data interrupted": (is_now(**cut), [LOCAL_MODEL, *data("broken"), "--dry_run"]),
        "private model": (is_now(**private), [*model("private"), LOCAL_DATA, "--dry_run"]),
        "private data": (is_now(**private), [LOCAL_MODEL, *data("private"), "--dry_run"]),
        "gated model": (is_now(**gated), [*model("gated"), LOCAL_DATA, "--dry_run"]),
        "gated data": (is_now(**gated), [LOCAL_MODEL, *data("gated"), "--dry_run"]),
        "no model": (is_now(), ["--model_name_or_path=tester/nothing", LOCAL_DATA, "--dry_run"]),
        "no data": (is_now(), [LOCAL_MODEL, "--dataset_name=tester/nothing", "--dry_run"]),
        "silent": (is_now(silent_seconds=2), [*model("silent"), LOCAL_DATA, "--dry_run"]),
        "silent for data": (is_now(silent_seconds=2), [LOCAL_MODEL, *data("silent"), "--dry_run"]),
    }


def run(folder: Path, arguments: list[str]) -> dict[str, object]:
    """One command in this process: its exit status and what it wrote."""
    import sft_main

    folder.mkdir()
    kept = os.dup(1), os.dup(2)
    files = folder / "stdout.txt", folder / "stderr.txt"
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    try:
        status = sft_main.main(
            [*arguments, "--report_to=none", "--bf16=false", "--sample_prompts=[]", f"--output_dir={folder / 'out'}"]
        )
    finally:
        for descriptor, was in enumerate(kept, start=1):
            os.dup2(was, descriptor)
    return {"status": status, "out": files[0].read_text(), "err": files[1].read_text()}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with local_hub(place / "hub") as hub:
        os.environ.update(
            HF_ENDPOINT=hub.url,
            HF_HOME=str(place / "home"),
            XDG_CACHE_HOME=str(place / "cache"),
            HF_HUB_ETAG_TIMEOUT="1",
            HF_HUB_DOWNLOAD_TIMEOUT="1",
        )
        os.environ.pop("HF_HUB_OFFLINE", None)
        for name in ("HF_TOKEN", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.pop(name, None)
        found = {}
        for name, (misbehave, arguments) in cases(hub).items():
            if name in sys.argv[2:]:
                misbehave()
                found[name] = run(place / name.replace(" ", "-"), arguments)
        pushed = {name: len(content) for name, content in hub.pushed.items()}
        secrets = [name for name, content in hub.pushed.items() if b"hf_secret" in content]
        print(json.dumps({"runs": found, "asked": hub.asked, "pushed": pushed, "with_secrets": secrets}))
