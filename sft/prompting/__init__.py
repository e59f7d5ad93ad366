"""Prompts: records to conversations, conversations to text with trained spans, text to token ids and labels.

Public:
    formats: `RecordFormat`, `find_format`, `format_named`.
    messages: Conversion of chat messages; `RowRefused`.
    rendering: `ChatRenderer`, which applies the tokenizer's chat template and locates what is trained.
    tokenizing: `RowTokenizer`.
    templates, limits: The shipped chat templates; what any template may use of the machine.
    message_keys, control_tokens: What a template reads of messages; control tokens in their contents.

It is the only package that knows record formats and chat templates. It knows nothing of files, datasets or models.
"""
