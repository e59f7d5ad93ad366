"""Scores of generated answers on rows of the evaluation sets, before, during and after training.

Scoring leaves no trace in the run: random numbers, the model's mode and attention, and the clock are as before.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sft.common.answer_scores import SCORES, summary
from sft.common.errors import ConfigError, one_line
from sft.common.files import append, write_text
from sft.common.run_records import Answer
from sft.common.shown_rows import ScoredPrompt
from sft.data.row_functions import UserFunction
from sft.modeling.batched_answers import answer_in_batches
from sft.modeling.document_attention import attention_of, isolated_documents
from sft.processes.agreement import gather_values
from sft.prompting.rendering import ChatRenderer

logger = logging.getLogger("sft.train")
FILE = "answers.jsonl"
Score = Callable[[ScoredPrompt, str], dict[str, float]]


class ScoredAnswers(TrainerCallback):
    """Answers and scores rows with a trainer's model."""

    def __init__(self, trainer: Any):
        """
        Args:
            trainer: its model answers, with the attention that it has now: the model's own.

        Raises:
            ConfigError: if a function of the settings cannot be loaded.
        """
        self._trainer = trainer
        self._config = trainer.setup.config.training
        self._rows: Mapping[str, Sequence[ScoredPrompt]] = trainer.setup.data.scored
        self._scores = [_score_named(name) for name in self._config.answer_scores]
        self._own_attention = attention_of(trainer.model)
        self._renderer: ChatRenderer | None = None
        self._is_training = False
        self._found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
        if trainer.setup.resume is not None and trainer.context.is_main_process:
            _keep_until(trainer.setup.resume.step, Path(trainer.args.output_dir, FILE))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._is_training = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._is_training = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_training and self._config.answers_at_evaluations:
            self.measure("validation", step=state.global_step)

    def measure(self, kind: str, *, step: int, is_new: bool = False) -> dict[str, dict[str, Any]]:
        """Scores of each set of a kind (`validation`, `test`) with the weights of now. A collective operation.

        Args:
            kind: of the sets.
            step: of the weights.
            is_new: whether the weights are others than the last ones of this step (those of the best checkpoint).

        Returns:
            Name of the set -> means, intervals, `rows` and `ended`; empty without such sets.
        """
        if (kind, step) in self._found and not is_new:
            return self._found[kind, step]
        found = self._found[kind, step] = {}
        for title, rows in self._rows.items():
            name = title.removeprefix(f"{kind} ")
            if name == title or not rows:
                continue
            answers = self._answers(rows)
            scores = [self._score(row, answer) for row, answer in zip(rows, answers, strict=True)]
            found[name] = summary(scores, [answer.ended for answer in answers])
            self._write(name, step, rows, answers, scores)
            prefix = "eval" if kind == "validation" else kind
            stem = prefix if name == kind else f"{prefix}_{name}"
            means = {name_of: value for name_of, value in found[name].items() if name_of not in ("intervals", "rows")}
            means["ended"] /= len(rows)
            self._trainer.log({f"{stem}_{name_of}": value for name_of, value in means.items()})
            if self._is_training:
                logger.info("  answers of %s at step %d: %s", name, step, scores_text(found[name]))
        return found

    def _answers(self, rows: Sequence[ScoredPrompt]) -> list[Answer]:
        """The answers to all rows; each process gives those of its share."""
        trainer, context = self._trainer, self._trainer.context
        tokenizer = trainer.processing_class
        if self._renderer is None:
            self._renderer = ChatRenderer(tokenizer)
        # With sharded weights every process takes part in every answer.
        own = list(rows) if trainer.is_sharded else list(rows[context.rank :: context.world_size])
        with trainer.without_trace(), isolated_documents(trainer.model, self._own_attention):
            texts = [self._renderer.render_prompt(*_arguments(row)) for row in own]
            answers = answer_in_batches(
                trainer.model,
                tokenizer,
                [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
                eos_token_ids=trainer.setup.prepared.eos_token_ids,
                max_new_tokens=self._config.answer_max_new_tokens,
                batch_size=self._config.answer_batch_size,
            )
        if trainer.is_sharded:
            return answers
        shares = gather_values(answers, context)
        return [shares[index % context.world_size][index // context.world_size] for index in range(len(rows))]

    def _score(self, row: ScoredPrompt, answer: Answer) -> dict[str, float]:
        return {name: value for score in self._scores for name, value in score(row, answer.text).items()}

    def _write(
        self,
        name: str,
        step: int,
        rows: Sequence[ScoredPrompt],
        answers: Sequence[Answer],
        scores: Sequence[Mapping[str, float]],
    ) -> None:
        """Adds the answers to `answers.jsonl`, in the main process."""
        if not self._trainer.context.is_main_process:
            return
        lines = [
            json.dumps(
                {
                    "step": step,
                    "set": name,
                    "row": row.place,
                    "prompt": row.prompt.shown,
                    "reference": row.prompt.reference,
                    "answer": answer.text,
                    "ended": answer.ended,
                    "scores": own,
                },
                ensure_ascii=False,
            )
            for row, answer, own in zip(rows, answers, scores, strict=True)
        ]
        append(Path(self._trainer.args.output_dir, FILE), "".join(f"{line}\n" for line in lines))


def scores_text(found: Mapping[str, Any]) -> str:
    """The scores of a set in words: means with their intervals, how many answers, and how many ended."""
    parts = [
        f"{name} {found[name]:.3f} ({own['low']:.3f} to {own['high']:.3f}, {own['by']})"
        for name, own in found["intervals"].items()
    ]
    return f"{', '.join(parts)}; {found['ended']:,} of {found['rows']:,} ended"


def _arguments(row: ScoredPrompt) -> tuple[Any, ...]:
    return row.prompt.messages, row.prompt.tools, row.prompt.template_kwargs


def _score_named(name: str) -> Score:
    """The score of a name in the settings."""
    known = SCORES.get(name)
    if known is not None:
        return lambda row, answer: {name: known(answer, str(row.prompt.reference))}
    function = UserFunction(name, "answer_scores")
    own_name = name.rpartition(":")[2]

    def score(row: ScoredPrompt, answer: str) -> dict[str, float]:
        try:
            value = function.call(list(row.prompt.messages), answer, row.prompt.reference, dict(row.row))
        except Exception as error:
            raise ConfigError(
                f"answer_scores: {name} raised {type(error).__name__} for {row.place}: {one_line(error)}."
            ) from error
        values = {f"{own_name}_{key}": each for key, each in value.items()} if isinstance(value, Mapping) else None
        found = {own_name: value} if values is None else values
        for each in found.values():
            if not isinstance(each, int | float) or not math.isfinite(each):
                raise ConfigError(
                    f"answer_scores: {name} returned {each!r} for {row.place}; return a finite number, or a dict of "
                    "them."
                )
        return {key: float(each) for key, each in found.items()}

    return score


def _keep_until(step: int, path: Path) -> None:
    """Removes the answers of steps after the one that a run resumes from: they are given again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(path, "".join(line for line in lines if json.loads(line)["step"] <= step))


def add_scored_answers(trainer: Any) -> ScoredAnswers | None:
    """The callback, added to a trainer; None where the settings ask for no scores."""
    if not trainer.setup.data.scored:
        return None
    scored = ScoredAnswers(trainer)
    trainer.add_callback(scored)
    return scored
