"""Loads a model with transformers 4 and prints what it reads, as JSON: `read_with_transformers4.py FOLDER TEXT`."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, text = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
token_ids = tokenizer(text)["input_ids"]
with torch.no_grad():
    logits = model(torch.tensor([token_ids])).logits[0, -1]
chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
found = {"token_ids": token_ids, "logits": logits.tolist(), "chat": chat, "eos": tokenizer.eos_token_id}
found["special"] = sorted(tokenizer.all_special_tokens)
print(json.dumps(found))
