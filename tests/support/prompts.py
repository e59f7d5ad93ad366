"""Chat templates of the common families, and conversations for them."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sft.common.data_records import Conversation
from sft.prompting.formats import find_format
from sft.prompting.tokenizing import RowTokenizer

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|end_header|>", "<|eot|>", "<start_of_turn>"]
SPECIALS += ["<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|end|>"]


CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|header|>' + m.role + '<|end_header|>\n\n' + m.content | trim }}"
    "{{ '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|header|>assistant<|end_header|>\n\n' }}{% endif %}"
)


MODEL_ROLE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


EOS_AT_THE_END = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


FAMILIES = {
    "chatml": (CHATML, "{}<|im_end|>", ""),
    "headers": (HEADERS, "{}<|eot|>", ""),
    "model_role": (MODEL_ROLE, "{}<end_of_turn>", ""),
    "inst": (INST, " {}</s>", ""),
    "eos_at_the_end": (EOS_AT_THE_END, "{}<|end|>", "\n</s>"),
}
"""Template, an answer in it as trained, and what is trained after the last answer."""


def build_special_tokenizer(*, trim_offsets=False, adds_bos=False, template=None, eos="</s>"):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the answer is four", "what is the question"] * 4, trainer)
    steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if adds_bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    tokenizer.post_processor = processors.Sequence(steps)
    # The pad token is the end of text on purpose: nothing may be masked by it.
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, pad_token=eos)
    fast.chat_template = template
    return fast


def conversation_with(*contents, system=None):
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    first = [{"role": "system", "content": system}] if system else []
    return Conversation(messages=(*first, *turns))


def trained_texts(rendered):
    return [rendered.text[start:end] for start, end in rendered.trained_spans]


def tokenize(tokenizer, rendered, max_seq_length=4096, *, is_chat=True):
    (row,) = RowTokenizer(tokenizer, is_chat=is_chat, max_seq_length=max_seq_length)([rendered]).split()
    return row


def decode_trained(tokenizer, row):
    return tokenizer.decode([token for token in row.labels.tolist() if token != -100], skip_special_tokens=False)


def convert(record):
    return find_format(record).convert(record)


U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
