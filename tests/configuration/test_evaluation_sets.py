"""Settings of evaluation sets, of the metric that chooses, and of early stopping."""

from __future__ import annotations

import pytest

from sft.configuration.evaluation_sets import files_of_sets, set_name_problem
from tests.support.configurations import problems_of


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("validation_file: {loss: DATA}\n", "validation_file: 'loss' is the name of a figure or of another set"),
        ("validation_file: {held_out: DATA}\n", "validation_file: 'held_out' is the name of"),
        ("test_file: {a b: DATA}\n", "test_file: 'a b' is not a name of a set: use letters, digits, _ and -"),
        ("forgetting_check: {}\n", "forgetting_check: is an empty mapping"),
        ("test_file: {a: nowhere.jsonl}\n", "test_file.a: no such file or folder: 'nowhere.jsonl'"),
        ("validation_file: {a: [DATA]}\n", "validation_file: expected a path"),
        ("validation_file: DATA\nvalidation_split: 0.1\n", "validation_split: conflicts with validation_file"),
        ("early_stopping_patience: 2\n", "early_stopping_patience: requires validation data"),
        ("early_stopping_patience: 0\nvalidation_split: 0.1\n", "early_stopping_patience: 0 is out of range"),
        ("early_stopping_threshold: 0.1\n", "early_stopping_threshold: requires early_stopping_patience."),
        (
            "early_stopping_patience: 2\nvalidation_split: 0.1\neval_strategy: no\n",
            "early_stopping_patience: requires evaluation, but eval_strategy is no",
        ),
    ],
)
def test_what_is_refused(text, message):
    problems = problems_of(text.replace("DATA", "train.jsonl"))
    assert any(message in problem for problem in problems), problems


def test_a_metric_of_an_unknown_set_is_answered_with_the_nearest():
    (problem,) = problems_of("validation_file: {code: train.jsonl}\nmetric_for_best_model: eval_cod_loss\n")
    assert "choose loss | loss_unweighted | perplexity" in problem
    assert "code_sequence_accuracy. Did you mean 'code_loss'?" in problem


def test_names_and_files():
    assert files_of_sets(None) == {}
    assert files_of_sets("a.jsonl") == {None: "a.jsonl"}
    assert files_of_sets({"x": "a.jsonl"}) == {"x": "a.jsonl"}
    assert set_name_problem("chats-2_b") is None
    assert set_name_problem("-x") is not None
