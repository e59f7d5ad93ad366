"""Makes the demo fine-tuning data in ``examples/data``: free-text orders turned into compact JSON.

    python examples/make_demo_data.py --output_dir examples/data

The files hold one JSON object per line, ``{"messages": [...]}``. Every assistant turn is a JSON object with the keys
item, count, colour and day, in this order; what the order does not specify is null. The result depends only on the
seed. Some names and some pairs of name and item occur in the validation file only.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tiny_corpus import COLOURS, DAYS, ITEMS, NAMES, capital, number_text

Row = dict[str, list[dict[str, str]]]

# The model has met these names in pretraining, but the fine-tuning never shows them.
UNSEEN_NAMES = ("Nora", "Carlos", "Ruth", "Yusuf")

# The fields: goods ("3 red apples"), Goods, item, count, colour, to, on (" on Friday" or ""), On ("On Friday").
PLAIN = (
    "Please send {goods} to {to}{on}.",
    "Please ship {goods} to {to}{on}, thank you.",
    "Could you send {to} {goods}{on}?",
    "Can you get {goods} to {to}{on}?",
    "Send {to} {goods}{on}.",
    "{to} would like {goods}{on}.",
    "{to} needs {goods}{on}, please.",
    "{to} asked me for {goods}{on}.",
    "I need {goods} for {to}{on}.",
    "I'd like to buy {goods} for {to}{on}.",
    "We would like {goods} for {to}{on}, please.",
    "{Goods} for {to}{on}.",
    "{Goods} to {to}{on}, please!",
    "Order for {to}: {goods}{on}.",
    "For {to}: {goods}{on}.",
    "New order: {goods} for {to}{on}.",
    "{to} is waiting for {goods}. Please send it{on}.",
    "I promised {to} {goods}{on}.",
    "Let {to} have {goods}{on}.",
    "Can {to} get {goods}{on}?",
    "My friend {to} wants {goods}{on}.",
    "It is a gift for {to}: {goods}{on}.",
)
WITH_DAY = (
    "{On} {to} needs {goods}.",
    "{On} please bring {goods} to {to}.",
    "{On}, send {goods} to {to}.",
    "{to} has a party{on} and wants {goods}.",
    "{On}: {goods} for {to}.",
)
WITH_COLOUR = (
    "{count} {item} for {to}{on}, all {colour}.",
    "Please send {count} {item} to {to}{on}. They should be {colour}.",
    "{to} wants {count} {item} in {colour}{on}.",
    "I need {count} {item} for {to}{on}. The colour is {colour}.",
)
NO_NAME = (
    "I need {goods}{on}.",
    "{Goods}{on}, please.",
    "Can I have {goods}{on}?",
    "Please send me {goods}{on}.",
)
DAY_FORMS = (" on {}", " on {}", " by {}", " this {}")
OPENINGS = ("", "", "", "", "Hello! ", "Hi, ", "Good morning. ", "Hey! ")
CLOSINGS = ("", "", "", "", " Thanks!", " Thank you.", " See you soon.")


@dataclass(frozen=True)
class Order:
    """One order. The recipient only occurs in the request; the other fields are the answer, in JSON key order.

    Attributes:
        item: The thing, as the order writes it.
        count: How many.
        colour: The colour, or None.
        to: Who gets it, or None.
        day: The weekday, or None.
    """

    item: str
    count: int
    colour: str | None
    to: str | None
    day: str | None

    def to_json(self) -> str:
        """The order in the form that the assistant is trained to write."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "to"})


def is_unseen(order: Order) -> bool:
    """Whether an order occurs in the validation file only.

    Args:
        order: An order.

    Returns:
        True for the unseen names and for one in twelve pairs of name and item.
    """
    if order.to is None:
        return False
    pair = NAMES.index(order.to) * 7 + sorted(ITEMS.values()).index(order.item) * 5
    return order.to in UNSEEN_NAMES or pair % 12 == 0


def draw_order(rng: random.Random) -> Order:
    """Draws the content of an order."""
    return Order(
        item=rng.choice(sorted(ITEMS.values())),
        count=rng.randint(2, 20),
        colour=rng.choice(COLOURS) if rng.random() < 0.85 else None,
        to=rng.choice(NAMES) if rng.random() < 0.93 else None,
        day=rng.choice(DAYS) if rng.random() < 0.88 else None,
    )


def write_request(order: Order, rng: random.Random) -> str:
    """Writes an order as a customer would.

    Args:
        order: The content.
        rng: Source of the wording.

    Returns:
        A sentence or two.
    """
    templates = list(PLAIN)
    if order.day:
        templates += WITH_DAY
    if order.colour:
        templates += WITH_COLOUR
    template = rng.choice(templates if order.to else NO_NAME)
    count = number_text(rng, order.count)
    goods = " ".join(part for part in (count, order.colour, order.item) if part)
    day = rng.choice(DAY_FORMS).format(order.day) if order.day else ""
    text = template.format(
        goods=goods,
        Goods=capital(goods),
        item=order.item,
        count=count,
        colour=order.colour,
        to=order.to,
        on=day,
        On=capital(day.strip()),
    )
    return f"{rng.choice(OPENINGS)}{capital(text)}{rng.choice(CLOSINGS)}"


def write_change(order: Order, rng: random.Random) -> tuple[str, Order]:
    """Writes a correction of one field.

    Args:
        order: The order so far.
        rng: Source of the choices.

    Returns:
        What the customer says and the new order.
    """
    field = rng.choice(("count", "count", "colour", "day"))
    if field == "count":
        count = rng.choice([n for n in range(2, 21) if n != order.count])
        text = rng.choice(("Make it {}.", "Sorry, I meant {}.", "Please change it to {}.", "{} are enough."))
        return capital(text.format(number_text(rng, count))), replace(order, count=count)
    if field == "colour":
        colour = rng.choice([c for c in COLOURS if c != order.colour])
        text = rng.choice(("In {}, please.", "Better in {}.", "The colour should be {}."))
        return text.format(colour), replace(order, colour=colour)
    day = rng.choice([d for d in DAYS if d != order.day])
    text = rng.choice(("{} is better.", "Not then, on {}.", "Can it be {}?"))
    return text.format(day), replace(order, day=day)


def make_row(rng: random.Random, unseen: bool) -> Row:
    """Makes one chat; about one in thirteen has a correction in it.

    Args:
        rng: Source of all choices.
        unseen: Whether the orders are among those reserved for validation.

    Returns:
        The row.
    """
    while True:
        order = draw_order(rng)
        turns = [(write_request(order, rng), order)]
        if rng.random() < 0.075:
            turns.append(write_change(order, rng))
        if any(is_unseen(answer) for _, answer in turns) == unseen:
            return to_row([(text, answer) for text, answer in turns])


def to_row(turns: list[tuple[str, Order]]) -> Row:
    """Puts requests and orders into the chat format.

    Args:
        turns: What the customer says, each with the right order.

    Returns:
        The row.
    """
    messages = []
    for text, order in turns:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": order.to_json()}]
    return {"messages": messages}


SAMPLES = (
    to_row([("Please send 3 red apples to Anna on Friday.", Order("apples", 3, "red", "Anna", "Friday"))]),
    to_row([("Hi, Carlos needs twelve candles by Monday, please.", Order("candles", 12, None, "Carlos", "Monday"))]),
    to_row([("I need 5 scarves for Emma. The colour is green. Thanks!", Order("scarves", 5, "green", "Emma", None))]),
)


def make_splits(train_rows: int, validation_rows: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Makes both files' rows, without a prompt that occurs twice.

    Args:
        train_rows: Number of training rows.
        validation_rows: Number of validation rows.
        seed: Seed of all choices.

    Returns:
        Training rows and validation rows. The validation begins with ``SAMPLES``, and half of its other rows are
        kept-back names or pairs.
    """
    rng = random.Random(seed)
    validation = list(SAMPLES)
    prompts = {row["messages"][0]["content"] for row in validation}

    def fill(rows: list[Row], size: int, unseen_share: float) -> None:
        while len(rows) < size:
            row = make_row(rng, unseen=rng.random() < unseen_share)
            prompt = row["messages"][0]["content"]
            if prompt not in prompts:
                prompts.add(prompt)
                rows.append(row)

    fill(validation, validation_rows, 0.5)
    train: list[Row] = []
    fill(train, train_rows, 0.0)
    return train, validation


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: The arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description="Make the demo fine-tuning data.")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--train_rows", type=int, default=2_000)
    parser.add_argument("--validation_rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args(arguments)
    train, validation = make_splits(options.train_rows, options.validation_rows, options.seed)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("validation", validation)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (options.output_dir / f"orders_{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
