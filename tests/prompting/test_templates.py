"""The shipped chat templates, and the values of `chat_template`."""

import pytest

from sft.common.errors import ConfigError
from sft.prompting.rendering import ChatRenderer
from sft.prompting.templates import resolve_chat_template, shipped_template_names
from tests.support import messages
from tests.support.prompts import conversation_with, trained_texts


def test_resolve_chat_template_accepts_name_file_and_text(tmp_path):
    assert shipped_template_names() == ["chatml", "plain"]
    plain = resolve_chat_template("plain", begins_with_bos=False)
    assert resolve_chat_template("plain", begins_with_bos=True) == "{{- bos_token -}}\n" + plain
    assert resolve_chat_template("{{ messages }}", begins_with_bos=True) == "{{ messages }}"
    (tmp_path / "mine.jinja").write_text("mine")
    assert resolve_chat_template(str(tmp_path / "mine.jinja"), begins_with_bos=True) == "mine"
    with pytest.raises(
        ConfigError,
        match="chat_template: " + messages.pattern(messages.NO_TEMPLATE_NAME, name="chatm", kinds=".*", other="chatml"),
    ):
        resolve_chat_template("chatm", begins_with_bos=False)


@pytest.mark.parametrize(
    ("name", "text", "trained"),
    [
        ("plain", "S\n\nUser:\nq\n\nAssistant:\na</s>\n\nUser:\nr\n\nAssistant:\nb</s>\n\n", ["a</s>", "b</s>"]),
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
            "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
            ["a<|im_end|>", "b<|im_end|>"],
        ),
    ],
)
def test_shipped_templates_write_and_train(data_with_template, name, text, trained):
    tokenizer = data_with_template(resolve_chat_template(name, begins_with_bos=False))
    rendered = ChatRenderer(tokenizer).render(conversation_with("q", "a", "r", "b", system="S"))
    assert (rendered.text, trained_texts(rendered)) == (text, trained)
