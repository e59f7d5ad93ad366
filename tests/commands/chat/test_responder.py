"""One model that answers: conversations and texts that exceed the context."""

from __future__ import annotations

import pytest

from sft.commands.chat.options import Sampling
from sft.commands.chat.responder import Responder
from sft.common.errors import ModelError
from tests.support import messages
from tests.support.saved_models import ESCAPE, QUESTION, loaded, save_endless_model
from tests.support.small_models import POSITIONS, build_model, build_tokenizer


def build_responder(positions=POSITIONS):
    model = build_model("llama").eval()
    model.config.max_position_embeddings = positions
    return Responder(model, build_tokenizer(), name="model", is_chat=True)


def test_a_long_conversation_loses_its_first_turns_but_not_the_system_prompt():
    responder, sampling = build_responder(), Sampling(max_new_tokens=16)
    turns = [{"role": "system", "content": "Be short."}]
    for index in range(12):
        turns += [{"role": "user", "content": f"{QUESTION} {index}"}, {"role": "assistant", "content": "Two."}]
    turns.append({"role": "user", "content": "Say hello."})
    token_ids, num_dropped = responder._fit_turns(turns, sampling)
    assert num_dropped > 0
    assert num_dropped % 2 == 0
    assert len(token_ids) + 16 <= POSITIONS
    text = build_tokenizer().decode(token_ids)
    assert "Be short." in text
    assert text.count("user") == (len(turns) - num_dropped) // 2
    answer = responder.answer(turns, sampling, turn=0, write=lambda _: None)
    assert answer.num_dropped_turns == num_dropped
    short = build_responder(positions=100_000).answer(turns, sampling, turn=0, write=lambda _: None)
    assert short.num_dropped_turns == 0


def test_an_answer_ends_at_the_last_position_with_a_notice(tmp_path):
    model, tokenizer = loaded(save_endless_model(tmp_path))
    model.config.max_position_embeddings = 64
    responder = Responder(model.eval(), tokenizer, name="model", is_chat=True)
    answer = responder.answer(
        [{"role": "user", "content": "Say hello."}], Sampling(max_new_tokens=500), turn=0, write=lambda _: None
    )
    assert answer.end_reason == "context length"
    prompt = len(responder._tokenize_messages([{"role": "user", "content": "Say hello."}]))
    assert answer.text == ESCAPE * (64 - prompt)


def test_a_message_that_does_not_fit_at_all_is_refused():
    responder = build_responder()
    with pytest.raises(ModelError, match=messages.PROMPT_TOO_LONG.format(tokens=r"[\d,]+", name="model", length=128)):
        responder.answer([{"role": "user", "content": QUESTION * 40}], Sampling(), turn=0, write=lambda _: None)


def test_a_long_text_is_continued_from_its_end(model_folder):
    model, tokenizer = loaded(model_folder("gpt2"))
    tokenizer.pad_token = tokenizer.eos_token
    responder = Responder(model.eval(), tokenizer, name="model", is_chat=False)
    text = "The quick brown fox. " * 60
    answer = responder.answer([{"role": "user", "content": text}], Sampling(max_new_tokens=8), turn=0, write=len)
    assert answer.num_dropped_tokens == len(tokenizer(text)["input_ids"]) - (POSITIONS - 8)
