"""Prompts: records to conversations, conversations to text with trained spans, text to token ids and labels.

Public:
    formats: `RecordFormat`, `find_format`, `format_named`.
    messages: Conversion of chat messages; `RowRefused`.
    rendering: `ChatRenderer`, which applies the tokenizer's chat template and locates what is trained.
    tokenizing: `RowTokenizer`.
    templates: The shipped chat templates.

It is the only package that knows record formats and chat templates. It knows nothing of files, datasets or models.
"""
