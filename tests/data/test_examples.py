"""Single rows to show: sample prompts and previews."""

from sft.common.data_records import RowProblem
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.sources.chunks import MAX_ROWS
from tests.support.data_files import answers, pairs, prepare, texts, write


def test_prepare_takes_sample_prompts_from_the_held_out_rows(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", ["[]", *pairs(20)])
    data = prepare(DataConfig(train_file=file, validation_split=0.2, on_bad_rows="skip"), tokenizer)
    assert [prompt.reference for prompt in data.sample_prompts] == answers(tokenizer, data.validation)[:3]


def test_previews_are_found_by_number_through_all_sources(tmp_path, tokenizer):
    first = write(tmp_path / "a.jsonl", ["", *pairs(2), "", '{"question": "q"}', *pairs(1, 5)])
    second = write(tmp_path / "b.jsonl", pairs(MAX_ROWS + 10, 1000))
    config = DataConfig(datasets=[DatasetSource(path=first), DatasetSource(path=second)], on_bad_rows="skip")
    for _ in range(2):
        data = prepare(config, tokenizer, show_rows=(4, 3, 5, 4 + MAX_ROWS + 2, 10_000, 1))
        shown = {preview.number: preview for preview in data.previews}
        assert list(shown) == [1, 3, 4, 5, 518]
        assert [str(preview.source) for preview in shown.values()] == [
            f"{first}:2",
            f"{first}:5",
            f"{first}:6",
            f"{second}:1",
            f"{second}:514",
        ]
        assert shown[3].problem == RowProblem(reason="missing_field", message="no field 'answer'; fields: question")
        assert shown[3].segments == ()
        texts_of = {
            number: [piece.text for piece in preview.segments if piece.trained] for number, preview in shown.items()
        }
        assert texts_of == {
            1: ["a 0<|im_end|>"],
            3: [],
            4: ["a 5<|im_end|>"],
            5: ["a 1000<|im_end|>"],
            518: ["a 1513<|im_end|>"],
        }
        row = data.train[3]  # the first of the second file
        assert tokenizer.decode(row["input_ids"]) == "".join(piece.text for piece in shown[5].segments)
        assert (shown[5].num_tokens, shown[5].num_supervised) == (len(row["input_ids"]), (row["labels"] != -100).sum())


def test_previews_show_truncation(tmp_path, tokenizer):
    file = texts(tmp_path / "a.txt", [10, 50])
    data = prepare(DataConfig(train_file=file, max_seq_length=20), tokenizer, show_rows=(1, 2))
    assert [(p.num_tokens, p.num_supervised, p.was_truncated) for p in data.previews] == [
        (10, 9, False),
        (20, 19, True),
    ]
    assert ["".join(piece.text for piece in p.segments) for p in data.previews] == [
        "000077777<|im_end|>",
        "0001" + "7" * 16,
    ]
