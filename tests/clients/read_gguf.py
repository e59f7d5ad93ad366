"""Prints the vocabulary of a GGUF file and some of its entries, as JSON: `python read_gguf.py FILE`."""

import json
import sys

from gguf import GGUFReader

fields = GGUFReader(sys.argv[1]).fields
prefix = "tokenizer.ggml."
names = ("tokens", "scores", "token_type", "add_space_prefix", "add_bos_token", "eos_token_id")
print(json.dumps({name: fields[prefix + name].contents() for name in names}))
