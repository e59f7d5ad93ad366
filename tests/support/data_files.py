"""Data files and what was prepared from them."""

import json

from data_handler import prepare_data


def write(path, rows):
    """Write JSON Lines; a str is written unchanged."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
    return str(path)


def pairs(count, first=0):
    return [{"question": f"q {i}", "answer": f"a {i}"} for i in range(first, first + count)]


def texts(path, lengths):
    """Texts of that many tokens with their end; digits are a token each, and all texts differ."""
    path.write_text("".join(f"{i:04}".ljust(length - 1, "7") + "\n" for i, length in enumerate(lengths)))
    return str(path)


def prepare(config, tokenizer, **options):
    return prepare_data(config, tokenizer, seed=0, **options)


def answers(tokenizer, rows):
    return [tokenizer.decode(row["labels"][row["labels"] != -100]).removesuffix("<|im_end|>") for row in rows]


def entries(cache):
    return sorted(path for path in cache.iterdir() if path.is_dir()) if cache.is_dir() else []


def mixed_rows(count):
    """Good rows of several lengths and every few rows a bad one of several kinds."""
    rows = []
    for i in range(count):
        rows.append({"question": f"What comes after {i}?" * (1 + i % 5), "answer": f"{i + 1}", "id": i})
        if i % 97 == 0:
            rows[-1] = '{"question": "torn'
        elif i % 61 == 0:
            rows[-1] = {"question": "q", "answer": ""}
        elif i % 53 == 0:
            rows[-1] = {"question": "long " * 300, "answer": f"{i}"}
        elif i % 41 == 0:
            rows[-1] = {"question": "q", "answer": f"{i} " * 200, "remark": None}
    return rows


TWO_TURNS = {
    "messages": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
}


def long_rows(tokenizer):
    """Rows that a limit of 60 tokens does not truncate, truncates in the answer, after it, and before it."""

    def chat(*contents):
        roles = ["user", "assistant"] * 2
        return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}

    return [
        chat("12", "34"),
        chat("12", "3" * 80),
        chat("1" * 80, "34"),
        chat("12", "34", "5" * 80),
        chat("12", "3" * 90),
    ]
