"""The digest by which duplicates are found."""

import hashlib
import random
import unicodedata

from sft.common.data_records import Conversation
from sft.data import digest


def in_one(parts):
    """The digest as it is defined, of all the text at once."""
    text = "\x1f".join(" ".join(part.casefold().split()) for part in parts)
    return int.from_bytes(
        hashlib.blake2b(unicodedata.normalize("NFC", text).encode(), digest_size=8).digest(), "little"
    )


def test_digest_of_a_long_conversation_is_made_in_blocks(monkeypatch):
    monkeypatch.setattr(digest, "_BLOCK", 7)
    rng = random.Random(3)
    pieces = [
        "a",
        "B",
        " ",
        "  ",
        "\n",
        "\x1e",
        "e\u0301",
        "\u0301",
        "\u0338",
        "=",
        "\u00df",
        "\u0130",
        "\u2003",
        "word",
    ]
    for _ in range(2000):
        first, second = ("".join(rng.choices(pieces, k=rng.randrange(25))) for _ in range(2))
        chat = Conversation(messages=({"role": "user", "content": first}, {"role": "assistant", "content": second}))
        assert digest.conversation_digest(chat) == in_one(["user", first, "assistant", second])
        assert digest.conversation_digest(Conversation(text=first)) == in_one([first])
