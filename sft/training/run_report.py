"""`report.html` and `report.md`: rewritten while a run trains, and at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sft.common.errors import one_line
from sft.common.files import write_text
from sft.common.run_records import BatchPlan, TrainingResult
from sft.configuration.values import config_to_yaml
from sft.processes.signals import signal_name
from sft.reporting.environment import describe_machine
from sft.reporting.metrics_log import read_metrics
from sft.reporting.report.facts import find_facts
from sft.reporting.report.html_page import report_html
from sft.reporting.report.markdown_page import report_markdown
from sft.reporting.report.records import (
    COMPLETED,
    FAILED,
    INTERRUPTED,
    RUNNING,
    ReportRecords,
    answers_of,
    read_answers,
)
from sft.training.run_setup import RunSetup

logger = logging.getLogger("sft.train")
HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


class RunReport(TrainerCallback):
    """Writes the report of a run, in the main process only. A failure to write it never ends the run."""

    def __init__(self, setup: RunSetup, *, plan: Callable[[], BatchPlan], bad_steps: Callable[[], int]):
        """
        Args:
            setup: the run.
            plan: returns the batch plan as it is now.
            bad_steps: returns the number of steps skipped so far.
        """
        self._setup, self._plan, self._bad_steps = setup, plan, bad_steps
        self._output = Path(setup.config.training.output_dir)
        self._records: ReportRecords | None = None
        """What does not change during the run; gathered when the report is first written."""
        self._step = 0
        self._failure: str | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write_while_running(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = state.global_step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write_while_running(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._setup.data.validation is None:
            self._write_while_running(state.global_step)  # otherwise updated at each evaluation

    def _write_while_running(self, step: int) -> None:
        self._step = step
        self._write(status=RUNNING, step=step)

    def finish(self, result: TrainingResult) -> None:
        """Write the report of a run that completed or was stopped."""
        self._write(
            status=COMPLETED if result.status == "completed" else INTERRUPTED,
            step=result.steps,
            result=result,
            ended_by=signal_name(result.stopped_by) if result.stopped_by else None,
        )

    @contextmanager
    def reporting_failure(self) -> Iterator[None]:
        """Write an error that ends the run into the report, which would otherwise show a running run."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            self._write(status=FAILED, step=self._step, failure=one_line(error))
            raise

    def _write(self, **known: Any) -> None:
        if not self._setup.context.is_main_process:
            return
        try:
            self._setup.check_output()
            self._records = self._records or self._first_records()
            facts = find_facts(self._updated(self._records, known))
            write_text(self._output / HTML_FILE, report_html(facts))
            write_text(self._output / MARKDOWN_FILE, report_markdown(facts))
        except Exception as error:
            # No failure of the report may end the run.
            problem = one_line(error)
            if problem != self._failure or known["status"] != RUNNING:
                logger.warning("%s cannot be written: %s", self._output / HTML_FILE, problem)
            self._failure = problem

    def _first_records(self) -> ReportRecords:
        setup = self._setup
        config, identity = setup.config, setup.identity
        return ReportRecords(
            name=config.logging.run_name or self._output.resolve().name,
            status=RUNNING,
            step=0,
            plan=self._plan(),
            data=setup.data.report,
            settings=identity.configuration,
            settings_yaml=config_to_yaml(config),
            given=dict(config.origins),
            config_sha256=identity.configuration_sha256,
            data_digests=asdict(identity.data),
            footprint=setup.prepared.footprint,
            model_class=setup.prepared.class_name,
            machine=describe_machine(setup.context),
            is_chat=setup.data.is_chat,
            command=setup.command,
        )

    def _updated(self, records: ReportRecords, known: Mapping[str, Any]) -> ReportRecords:
        metrics = self._output / "metrics.jsonl"
        prompts = read_answers(self._output / "samples.jsonl")
        result = known.get("result")
        if not prompts and result is not None:
            prompts = answers_of(result.samples, result.steps)
        return replace(
            records,
            plan=self._plan(),
            bad_steps=self._bad_steps(),
            events=read_metrics(metrics) if metrics.is_file() else (),
            prompts=prompts,
            written_at=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
            **known,
        )
