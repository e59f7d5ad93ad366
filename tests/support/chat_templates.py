"""Chat templates that each have one habit, and conversations for them.

Expected texts are literal, with the trained characters in «».
"""

from sft.common.data_records import Conversation

LOOP = "{% for m in messages %}"


END = "{% endfor %}"


ASKS = "{% if add_generation_prompt %}"


CALLS = (
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}"
)


TURNS = {
    "plain": LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    # The prompt's header is there whether it is asked for or not.
    "always_asks": LOOP + "<|start|>{{ m.role }}<|sep|>{{ m.content }}<|end|>" + END + "<|start|>assistant<|sep|>",
    "always_asks_briefly": LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>" + END + "<|assistant|>",
    # The last answer of a conversation has another end than the earlier ones.
    "returns": LOOP + "<|start|>{{ m.role }}<|say|>{{ m.content }}{% if loop.last and m.role == 'assistant' and not "
    "add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}" + END + ASKS + "<|start|>assistant{% endif %}",
    "ends_between": LOOP + "<|start|>{{ m.role }}\n{{ m.content }}{{ '\n<|end|>\n' if not loop.last or "
    "add_generation_prompt }}" + END + ASKS + "<|start|>assistant\n{% endif %}",
    # Nothing but the next turn ends an answer.
    "next_turn_ends": LOOP + "<|{{ m.role }}|>\n{{ m.content }}" + END + ASKS + "<|assistant|>{% endif %}",
    "words_only": LOOP + "### {{ m.role }}:\n{{ m.content }}\n" + END + ASKS + "### assistant:\n{% endif %}",
    # The prompt has other white space than the conversation.
    "spaced_prompt": LOOP + "{{ '\n\n' }}### {{ m.role }}:\n{{ m.content }}<|end|>" + END + ASKS + "### assistant:\n"
    "{% endif %}",
    # The last question gets a hint.
    "hints": LOOP
    + "<|{{ m.role }}|>{{ m.content }}{{ ' /brief' if loop.last and m.role == 'user' }}<|end|>"
    + END
    + ASKS
    + "<|assistant|>{% endif %}",
    # The prompt begins thoughts that no answer of the conversation has.
    "prompt_thinks": LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>" + END + ASKS + "<|assistant|><think>\n{% endif %}",
    "history_without_thoughts": LOOP + "<|{{ m.role }}|>{% if m.role == 'assistant' %}{% if loop.last %}<think>"
    "{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}"
    "{% endif %}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    "trims_answers": LOOP
    + "<|{{ m.role }}|>{{ m.content | trim if m.role == 'assistant' else m.content }}<|end|>\n"
    + END
    + ASKS
    + "<|assistant|>{% endif %}",
    # A special token with a bracket in it.
    "brackets": LOOP + "[~[{{ m.role }}\n{{ m.content }}[~]\n" + END + ASKS + "[~[assistant\n{% endif %}",
    "parts": LOOP
    + "<|{{ m.role }}|>{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>"
    + END
    + ASKS
    + "<|assistant|>{% endif %}",
    # Turns of one role in a row are one turn.
    "merges": LOOP + "{% if loop.first or m.role != loop.previtem.role %}<|{{ m.role }}|>{% endif %}{{ m.content }}"
    "{% if loop.last or m.role != loop.nextitem.role %}<|end|>{% endif %}" + END + ASKS + "<|assistant|>{% endif %}",
    # With a prompt it leaves a last answer open.
    "goes_on": LOOP + "<|{{ m.role }}|>{{ m.content }}{% if not (loop.last and add_generation_prompt and m.role == "
    "'assistant') %}<|end|>{% endif %}{% if loop.last and add_generation_prompt and m.role != 'assistant' %}"
    "<|assistant|>{% endif %}" + END,
    # A question is looked at before it is written.
    "looks": LOOP + "<|{% if m.content.startswith('<result>') %}tool{% else %}{{ m.role }}{% endif %}|>{{ m.content }}"
    "<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    "compares": LOOP
    + "<|{{ m.role }}|>{{ 'nothing' if m.content == 'x' else m.content }}<|end|>"
    + END
    + ASKS
    + "<|assistant|>{% endif %}",
    # It takes no conversation of an odd number of turns, unless as a prompt.
    "pairs": "{% if messages | length % 2 and not add_generation_prompt %}{{ raise_exception('no') }}{% endif %}"
    + LOOP
    + "<|{{ m.role }}|>{{ m.content }}<|end|>"
    + END
    + ASKS
    + "<|assistant|>{% endif %}",
}


MARKERS = ["<|user|>", "<|assistant|>", "<|system|>", "<|start|>", "<|sep|>", "<|end|>", "<|return|>", "<|say|>"]
MARKERS += ["<|tool|>", "[~[", "[~]"]


def chat_of(*contents, roles="ua", **options):
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    roles = (roles * len(contents))[: len(contents)]
    messages = tuple({"role": names[role], "content": content} for role, content in zip(roles, contents, strict=True))
    return Conversation(messages=messages, **options)


def mark_spans(rendered):
    text = rendered.text
    for start, end in reversed(rendered.trained_spans):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    return text


TWO = ("Hi", "Yes", "Bye", "No")


WHOLE = {
    "plain": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "always_asks": "<|start|>user<|sep|>Hi<|end|><|start|>assistant<|sep|>«Yes<|end|>»<|start|>user<|sep|>Bye<|end|>"
    "<|start|>assistant<|sep|>«No<|end|>»<|start|>assistant<|sep|>",
    "always_asks_briefly": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»"
    "<|assistant|>",
    "returns": "<|start|>user<|say|>Hi<|end|><|start|>assistant«<|say|>Yes<|end|>»<|start|>user<|say|>Bye<|end|>"
    "<|start|>assistant«<|say|>No<|return|>»",
    "ends_between": "<|start|>user\nHi\n<|end|>\n<|start|>assistant\n«Yes\n<|end|>»\n<|start|>user\nBye\n<|end|>\n"
    "<|start|>assistant\n«No»",
    "next_turn_ends": "<|user|>\nHi<|assistant|>«\nYes<|user|>»\nBye<|assistant|>«\nNo»",
    "words_only": "### user:\nHi\n### assistant:\n«Yes\n»### user:\nBye\n### assistant:\n«No\n»",
    "spaced_prompt": "\n\n### user:\nHi<|end|>\n\n### assistant:\n«Yes<|end|>»\n\n### user:\nBye<|end|>\n\n"
    "### assistant:\n«No<|end|>»",
    "hints": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "prompt_thinks": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "history_without_thoughts": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|>"
    "<|assistant|>«<think></think>No<|end|>»",
    "trims_answers": "<|user|>Hi<|end|>\n<|assistant|>«Yes<|end|>»\n<|user|>Bye<|end|>\n<|assistant|>«No<|end|>»\n",
    "brackets": "[~[user\nHi[~]\n[~[assistant\n«Yes[~]»\n[~[user\nBye[~]\n[~[assistant\n«No[~]»\n",
    "parts": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "merges": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "goes_on": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "looks": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "compares": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "pairs": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
}


TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {}}},)


TOOL_TURNS = {
    "plain": LOOP + "<|{{ m.role }}|>{{ m.content }}" + CALLS + "<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    # A result is written with the name that the call has.
    "names_results": LOOP + "<|{{ m.role }}|>{% if m.role == 'tool' %}{{ messages[loop.index0 - 1].tool_calls[0]"
    ".function.name }}={% endif %}{{ m.content }}" + CALLS + "<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    "drops_text": LOOP
    + "<|{{ m.role }}|>{% if m.tool_calls %}"
    + CALLS
    + "{% else %}{{ m.content }}{% endif %}<|end|>"
    + END
    + ASKS
    + "<|assistant|>{% endif %}",
    "takes_text_arguments": LOOP + "<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + c.function.arguments + '</call>' }}{% endfor %}<|end|>"
    + END
    + ASKS
    + "<|assistant|>{% endif %}",
    # After a result an answer has no header, though the prompt has one.
    "goes_on": LOOP + "{% if loop.first or m.role == 'user' or loop.previtem.role == 'user' %}<|{{ m.role }}|>"
    "{% endif %}{{ '[' + m.content + ']' if m.role == 'tool' else m.content }}" + CALLS + "{% if m.role == 'user' or "
    "m.role == 'assistant' and loop.last %}<|end|>{% endif %}" + END + ASKS + "<|assistant|>{% endif %}",
    "next_turn_ends": LOOP + "<|{{ m.role }}|>{{ m.content }}" + CALLS + END + ASKS + "<|assistant|>{% endif %}",
    # Arguments are written in a way that no mark survives.
    "quotes": LOOP + "<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} "
    "{{ c.function.arguments | string }}</call>{% endfor %}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    "drops_calls": LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    # The text of a turn with a call is written after the call's result, if there is one.
    "moves_text": LOOP + "<|{{ m.role }}|>{% if m.tool_calls %}" + CALLS + "{{ m.content if loop.last }}{% else %}"
    "{{ m.content }}{% endif %}"
    "{% if m.role == 'tool' %}{{ loop.previtem.content }}{% endif %}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
}


def _call(text="", **arguments):
    function = {"name": "look", "arguments": arguments}
    return {"role": "assistant", "content": text, "tool_calls": [{"type": "function", "function": function}]}


def _calling(*calls, result="5"):
    messages = [{"role": "user", "content": "q"}]
    for call in calls:
        messages += [call, {"role": "tool", "content": result}]
    return Conversation(messages=(*messages, {"role": "assistant", "content": "ok"}), tools=TOOLS)
