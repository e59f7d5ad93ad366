"""Reasons why data cannot be trained on."""

from dataclasses import replace

import pytest

from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.checks import bad_row_lines, find_problems
from tests.support import messages
from tests.support.data_files import answers, long_rows, pairs, prepare, texts, write
from tests.support.small_models import build_tokenizer


@pytest.mark.parametrize(("share", "is_sound"), [(0.0, False), (0.19, False), (0.2, True), (1.0, True)])
def test_find_problems_of_leakage_up_to_a_share(tmp_path, tokenizer, leaking, share, is_sound):
    config = replace(leaking, max_leakage_share=share)
    line = (
        f"2 of 10 validation rows are also in the training data ({tmp_path}/v.jsonl:3 is {tmp_path}/b.jsonl:2; "
        f"{tmp_path}/v.jsonl:9 is {tmp_path}/a.jsonl:5): more than max_leakage_share {share:g} allows. Remove them "
        "or raise max_leakage_share."
    )
    assert find_problems(prepare(config, tokenizer).report, config) == ([] if is_sound else [line])


def test_find_problems_of_too_long_rows(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", long_rows(tokenizer))
    config = DataConfig(train_file=file, max_seq_length=60, on_too_long="error")
    report = prepare(config, tokenizer).report
    longest = report.train.lengths.longest
    assert find_problems(report, config) == [
        "4 of 5 train rows are longer than max_seq_length 60, and on_too_long is error. The longest has "
        f"{longest} tokens: raise max_seq_length, or set on_too_long to truncate or drop."
    ]
    lines = bad_row_lines(report, config)
    assert [line.split(":")[1] for line in lines] == ["2", "3", "4", "5"]
    assert lines[-1] == f"{file}:5: it has {longest} tokens, more than max_seq_length 60 (too_long)."
    # Dropped on demand, they are no bad rows, however many they are.
    drop = replace(config, on_too_long="drop", max_bad_row_share=0.0)
    assert find_problems(prepare(drop, tokenizer).report, drop) == []


@pytest.mark.parametrize(
    ("bad", "rows", "share", "is_sound"),
    [
        (1, 10, 0.1, True),
        (2, 19, 0.1, False),
        (29, 100, 0.29, True),
        (30, 100, 0.29, False),
        (1, 10, 0.0, False),
        (0, 10, 0.0, True),
        (9, 10, 1.0, True),
    ],
)
def test_find_problems_of_bad_rows_up_to_a_share(tmp_path, tokenizer, bad, rows, share, is_sound):
    file = write(tmp_path / "a.jsonl", [*pairs(rows - bad), *[{"question": "q", "answer": ""}] * bad])
    config = DataConfig(train_file=file, on_bad_rows="skip", max_bad_row_share=share)
    report = prepare(config, tokenizer).report
    line = (
        f"{bad} of {rows} train rows ({bad / rows:.1%}) are dropped ({bad} empty_answer): more than max_bad_row_share "
        f"{share:g} allows. Fix the data or raise max_bad_row_share."
    )
    assert find_problems(report, config) == ([] if is_sound else [line])
    assert bad_row_lines(report, config) == []


def more_than_allowed(share):
    return f"To skip {share} of the rows, raise max_bad_row_share (now 0.1), too."


@pytest.mark.parametrize(
    ("bad", "rows", "ending"),
    [
        (1, 10, f"Fix them, {messages.FIX_OR_SKIP}"),
        (2, 10, f"Fix them, {messages.FIX_OR_SKIP} {more_than_allowed('20.0%')}"),
        (9, 10, f"Fix them, {messages.FIX_OR_SKIP} {more_than_allowed('90.0%')}"),
        (10, 10, "Fix them: no row is left."),
    ],
)
def test_skipping_is_proposed_where_it_would_help(tmp_path, tokenizer, bad, rows, ending):
    file = write(tmp_path / "a.jsonl", [*pairs(rows - bad), *[{"question": "q", "answer": ""}] * bad])
    config = DataConfig(train_file=file)
    (problem,) = find_problems(prepare(config, tokenizer).report, config)
    assert problem == f"{bad} of {rows} train rows cannot be used ({bad} empty_answer). {ending}"


@pytest.mark.parametrize(
    ("reasons", "fixes"),
    [
        ({"nothing_left_after_truncation": 2}, "Fix them, or raise max_seq_length: no row is left."),
        ({"tool_calls_left_out": 2}, "Fix them, or choose a chat_template that writes tool calls: no row is left."),
    ],
)
def test_a_reason_with_a_remedy_names_it(tmp_path, tokenizer, reasons, fixes):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", pairs(2)))
    report = prepare(config, tokenizer).report
    train = replace(report.train, rows_used=0, rows_dropped=reasons)
    assert find_problems(replace(report, train=train), config)[0].endswith(fixes)


def test_remarks_of_held_out_rows_are_said_to_be_counted(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", pairs(10))
    own = write(tmp_path / "b.jsonl", pairs(2, 50))
    split = DataConfig(train_file=file, validation_split=0.2)
    assert prepare(split, tokenizer).report.train.remarks_include_validation
    for config in (DataConfig(train_file=file), DataConfig(train_file=file, validation_file=own)):
        assert not prepare(config, tokenizer).report.train.remarks_include_validation


def test_find_problems_of_both_splits(tmp_path, tokenizer):
    config = DataConfig(
        train_file=write(tmp_path / "a.jsonl", [*pairs(3), "[]"]),
        validation_file=write(tmp_path / "b.jsonl", [*pairs(2, 50), "[]", "{}"]),
    )
    report = prepare(config, tokenizer).report
    ending, half = f"Fix them, {messages.FIX_OR_SKIP}", more_than_allowed("50.0%")
    assert find_problems(report, config) == [
        f"1 of 4 train rows cannot be used (1 not_an_object). {ending} {more_than_allowed('25.0%')}",
        f"2 of 4 validation rows cannot be used (1 not_an_object, 1 missing_field). {ending} {half}",
    ]
    assert [line.split(":")[0] for line in bad_row_lines(report, config)] == [
        config.train_file,
        config.validation_file,
        config.validation_file,
    ]
    assert (report.rows_read, report.rows_used) == (8, 5)
    assert report.rows_dropped == {"not_an_object": 2, "missing_field": 1}


def test_find_problems_of_an_end_that_is_always_truncated(tmp_path, tokenizer):
    file = texts(tmp_path / "a.txt", [50, 60, 70])
    config = DataConfig(train_file=file, max_seq_length=20)
    assert find_problems(prepare(config, tokenizer).report, config) == [
        f"{messages.END_NEVER_TRAINED_TRUNCATED.format(rows=3)}, so the model would not "
        "learn to stop. Raise max_seq_length; 70 truncates no row."
    ]
    enough = replace(config, max_seq_length=50)
    assert find_problems(prepare(enough, tokenizer).report, enough) == []


def test_find_problems_of_a_template_without_end_blames_the_template(tmp_path):
    """Also where some rows are too long besides."""
    tokenizer = build_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    file = write(tmp_path / "a.jsonl", [*pairs(2), {"question": "q", "answer": "7" * 100}])
    for on_too_long in ("truncate", "drop"):
        config = DataConfig(train_file=file, max_seq_length=60, on_too_long=on_too_long)
        (problem,) = find_problems(prepare(config, tokenizer).report, config)
        assert problem.startswith(messages.END_NEVER_TRAINED_TEMPLATE)
    mended = replace(config, add_end_token=True)
    assert find_problems(prepare(mended, tokenizer).report, mended) == []


def test_find_problems_of_a_weight_that_selects_no_row(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", pairs(4))
    config = DataConfig(datasets=[DatasetSource(path=file, weight=0.1)])
    data = prepare(config, tokenizer)
    assert (len(data.train), data.report.train.rows_used, data.report.train.sources[0].rows_an_epoch) == (0, 4, 0)
    assert find_problems(data.report, config) == [
        f"datasets[0].weight: with 0.1, an epoch takes none of the 4 rows of {file}. Raise the weight or remove "
        "the source."
    ]


def squad(question, *texts):
    return {
        "context": "It is 7.",
        "question": question,
        "answers": {"text": list(texts), "answer_start": [6] * len(texts)},
    }


SQUAD_ROWS = [squad("What?", "7"), squad("Who?"), squad("What is it?", "7", "seven"), squad("When?"), squad("Where?")]


@pytest.mark.parametrize(
    ("unanswerable", "on_bad_rows", "share", "num_used", "num_dropped", "problem"),
    [
        (None, "error", 0.1, 2, 3, "3 of 5 train rows (the first is {file}:2) are questions without an answer"),
        (None, "skip", 0.1, 2, 3, "more than max_bad_row_share 0.1 allows"),
        (None, "skip", 1.0, 2, 3, None),
        ("skip", "error", 0.1, 2, 3, None),
        ("skip", "skip", 0.0, 2, 3, None),
        ("I don't know.", "error", 0.1, 5, 0, None),
    ],
)
def test_questions_without_an_answer_are_named_skipped_or_answered(
    tmp_path, tokenizer, unanswerable, on_bad_rows, share, num_used, num_dropped, problem
):
    file = write(tmp_path / "a.jsonl", SQUAD_ROWS)
    config = DataConfig(train_file=file, unanswerable=unanswerable, on_bad_rows=on_bad_rows, max_bad_row_share=share)
    data = prepare(config, tokenizer)
    train = data.report.train
    assert (train.rows_used, train.rows_dropped) == (num_used, {"unanswerable": num_dropped} if num_dropped else {})
    trained = answers(tokenizer, data.train)
    assert trained == (["7", unanswerable, "7", unanswerable, unanswerable] if num_used == 5 else ["7", "7"])
    problems = [*bad_row_lines(data.report, config), *find_problems(data.report, config)]
    assert len(problems) == (problem is not None)
    if problem is not None:
        assert problem.format(file=file) in problems[0]
        assert messages.SET_UNANSWERABLE in problems[0]
        assert "I don't know." in problems[0]


def test_questions_without_an_answer_of_both_splits_are_one_line(tmp_path, tokenizer):
    rows = [*SQUAD_ROWS, {"context": "c", "question": "q", "answers": {"text": [""]}}]
    config = DataConfig(
        train_file=write(tmp_path / "a.jsonl", rows), validation_file=write(tmp_path / "v.jsonl", rows[:2])
    )
    report = prepare(config, tokenizer).report
    (line,) = [line for line in find_problems(report, config) if messages.WITHOUT_ANSWER in line]
    first = f"{tmp_path}/a.jsonl:2"
    assert messages.FIRST_WITHOUT_ANSWER.format(train="3 of 6", row=first, validation="1 of 2") in line
    assert [line.split(": ")[0] for line in bad_row_lines(report, config)] == [f"{tmp_path}/a.jsonl:6"]


def test_unanswerable_without_such_questions_is_noted(tmp_path, tokenizer, caplog):
    with caplog.at_level("INFO", logger="sft.data"):
        prepare(DataConfig(train_file=write(tmp_path / "a.jsonl", pairs(2)), unanswerable="skip"), tokenizer)
    assert messages.UNANSWERABLE_UNUSED in caplog.messages
