"""The sample prompts, answered before training, at each evaluation and after: the results that people look at first.

Answering does not change the run: random numbers, the model's mode, its attention and the clock are as before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from sft.common.device_errors import is_out_of_memory
from sft.common.run_records import Answer, SampleAnswer
from sft.common.shown_rows import SamplePrompt
from sft.modeling.answering import answer_prompts
from sft.modeling.document_attention import attention_of, isolated_documents
from sft.modeling.random_state import RandomState
from sft.modeling.sharding import reshard_weights
from sft.reporting.samples_log import SamplesLog
from sft.reporting.trackers.install import Trackers
from sft.training.evaluating_trainer import EvaluatingTrainer

logger = logging.getLogger("sft.train")


class SampleAnswers(TrainerCallback):
    """Answers the sample prompts with a trainer's model, and keeps the answers by step."""

    def __init__(
        self,
        trainer: EvaluatingTrainer,
        prompts: Sequence[SamplePrompt],
        eos_token_ids: list[int],
        *,
        max_new_tokens: int,
        at_evaluations: bool,
        log: SamplesLog | None,
        trackers: Trackers,
    ):
        """
        Args:
            trainer: its model answers, with the attention that it has now: the model's own.
            prompts: to answer.
            eos_token_ids: tokens that end an answer.
            max_new_tokens: of an answer.
            at_evaluations: whether to answer at evaluations during training too.
            log: `samples.jsonl`; None where this process writes none.
            trackers: show the answers too.
        """
        self._trainer = trainer
        self._prompts = prompts
        self._eos_token_ids = eos_token_ids
        self._max_new_tokens = max_new_tokens
        self._at_evaluations = at_evaluations
        self._log = log
        self._trackers = trackers
        self._own_attention = attention_of(trainer.model)
        self._answers: dict[int, list[Answer]] = {}
        self._is_training = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._is_training = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_training and self._at_evaluations:
            self.ask(step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._is_training = False

    def restore(self, known: Mapping[str, Answer]) -> None:
        """Takes over the answers that a resumed run gave before its first step, if none is missing.

        Args:
            known: prompt -> answer.
        """
        if self._prompts and all(prompt.shown in known for prompt in self._prompts):
            self._keep(0, [known[prompt.shown] for prompt in self._prompts])

    def ask(self, *, step: int) -> None:
        """Answers all prompts with the weights of this step, unless that was done. All processes call it.

        Only the main process answers, unless the model is sharded: the others wait at the next sum of gradients.
        Under DeepSpeed nothing is answered.

        Args:
            step: of the weights that the model has now.
        """
        trainer = self._trainer
        if step in self._answers or not self._prompts or trainer.is_deepspeed_enabled:
            return
        # Gathering sharded weights is a collective operation, so all processes answer; the main one's answers count.
        if not (trainer.context.is_main_process or trainer.is_sharded):
            return
        random_state = RandomState.capture(trainer.context.device)
        try:
            with trainer.progress.paused("answering"), isolated_documents(trainer.model, self._own_attention):
                answers = answer_prompts(
                    trainer.model, trainer.processing_class, self._prompts, self._eos_token_ids, self._max_new_tokens
                )
        except (MemoryError, RuntimeError) as error:
            if trainer.is_sharded or not is_out_of_memory(error):
                raise  # the other processes wait in a collective operation
            logger.info(
                "Out of memory while answering the sample prompts at step %d: training continues without these "
                "answers. Shorter sample_prompts or a smaller sample_max_new_tokens need less memory.",
                step,
            )
            return
        finally:
            random_state.restore()
        if trainer.is_sharded:
            reshard_weights(trainer.model)
        self._keep(step, answers)
        if step == trainer.state.global_step and trainer.context.is_main_process:
            ended = sum(answer.ended for answer in answers)
            trainer.log({"eval_samples_ended": ended / len(answers)})

    def before_and_after(self) -> tuple[SampleAnswer, ...]:
        """Each prompt with its answers before and after training; missing answers of the latter are generated."""
        trainer = self._trainer
        state = trainer.state
        best_step = state.best_global_step if trainer.args.load_best_model_at_end else None
        step = best_step or state.global_step
        self.ask(step=step)
        return tuple(
            SampleAnswer(
                prompt=prompt.shown,
                before=old.text,
                after=new.text,
                reference=prompt.reference,
                before_ended=old.ended,
                after_ended=new.ended,
            )
            for prompt, old, new in zip(
                self._prompts, self._answers.get(0, ()), self._answers.get(step, ()), strict=False
            )
        )

    def _keep(self, step: int, answers: list[Answer]) -> None:
        self._answers[step] = answers
        pairs = list(zip(self._prompts, answers, strict=True))
        if step == 0:
            # Kept in checkpoints: a resumed run has other weights by then.
            known = {prompt.shown: answer for prompt, answer in pairs}
            self._trainer.before = replace(self._trainer.before, answers=known)
        if self._log is None:
            return
        lines = [
            {
                "step": step,
                "prompt": prompt.shown,
                "answer": answer.text,
                "ended": answer.ended,
                "reference": prompt.reference,
            }
            for prompt, answer in pairs
        ]
        new = self._log.write(lines)
        if new:
            self._trackers.add_samples(step, new)


def build_samples(trainer: EvaluatingTrainer, trackers: Trackers) -> SampleAnswers:
    """Builds the sample answers of a trainer; at evaluations too, if the settings request it.

    Args:
        trainer: complete, not yet training.
        trackers: show the answers too.
    """
    setup, settings = trainer.setup, trainer.setup.config.logging
    log = None
    if setup.context.is_main_process:
        resume_step = setup.resume.step if setup.resume is not None else None
        log = SamplesLog(trainer.output_dir / "samples.jsonl", resume_step=resume_step, check=setup.check_output)
    samples = SampleAnswers(
        trainer,
        setup.data.sample_prompts,
        list(setup.prepared.eos_token_ids),
        max_new_tokens=settings.sample_max_new_tokens,
        at_evaluations=settings.sample_at_evaluations,
        log=log,
        trackers=trackers,
    )
    trainer.add_callback(samples)
    return samples
