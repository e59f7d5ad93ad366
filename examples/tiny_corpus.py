"""A procedural generator of simple English for the tiny demo chat model.

Every sentence comes from the word lists and templates in this file, so the text needs no download and carries no
licence but our own (MIT). Two kinds of documents come out of :func:`generate`:

* plain texts (``{"text": ...}``): small stories, facts, descriptions, lists, quotes;
* chats (``{"messages": [...]}``): questions and answers, small talk, reading, and shop orders that the assistant
  answers in friendly prose.

Much of the text says a word twice (an order and its confirmation, a quote and its echo). A model this small learns
to copy words from the prompt only if copying pays off in most of its training documents.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

Document = dict[str, Any]

NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olivia Paul Rosa Sam Tina Victor Wendy "
    "Yusuf Zoe Amir Bella Carlos Dina Erik Fatima Gina Hugo Ines Jonas Kira Lars Mina Nina Omar Petra Ravi Sofia Tom "
    "Uma Vera Will Lena Max Julia Oscar Lucy Adam Nora Peter Ruth Simon Alma Karim Elsa Milo Tara"
).split()
COLOURS = "red blue green yellow white black purple orange pink brown grey silver".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()

# Singular and plural of the things that people order, own and lose in this small world.
ITEMS: dict[str, str] = {
    "apple": "apples",
    "pear": "pears",
    "candle": "candles",
    "cup": "cups",
    "plate": "plates",
    "book": "books",
    "pencil": "pencils",
    "scarf": "scarves",
    "hat": "hats",
    "sock": "socks",
    "balloon": "balloons",
    "ribbon": "ribbons",
    "rose": "roses",
    "tulip": "tulips",
    "box": "boxes",
    "bag": "bags",
    "lamp": "lamps",
    "chair": "chairs",
    "pillow": "pillows",
    "blanket": "blankets",
    "towel": "towels",
    "bowl": "bowls",
    "kite": "kites",
    "ball": "balls",
    "toy": "toys",
    "shirt": "shirts",
    "button": "buttons",
    "card": "cards",
    "basket": "baskets",
    "bottle": "bottles",
    "spoon": "spoons",
    "brush": "brushes",
    "notebook": "notebooks",
    "umbrella": "umbrellas",
    "marble": "marbles",
    "glove": "gloves",
    "curtain": "curtains",
    "flag": "flags",
    "bead": "beads",
    "cushion": "cushions",
}

# name -> (plural, sound, home, food, legs)
ANIMALS: dict[str, tuple[str, str, str, str, int]] = {
    "dog": ("dogs", "woof", "house", "meat", 4),
    "cat": ("cats", "meow", "house", "fish", 4),
    "cow": ("cows", "moo", "barn", "grass", 4),
    "duck": ("ducks", "quack", "pond", "bread", 2),
    "sheep": ("sheep", "baa", "field", "grass", 4),
    "horse": ("horses", "neigh", "stable", "hay", 4),
    "pig": ("pigs", "oink", "barn", "corn", 4),
    "hen": ("hens", "cluck", "yard", "seeds", 2),
    "frog": ("frogs", "croak", "pond", "flies", 4),
    "owl": ("owls", "hoot", "forest", "mice", 2),
    "bee": ("bees", "buzz", "hive", "honey", 6),
    "mouse": ("mice", "squeak", "hole", "cheese", 4),
    "lion": ("lions", "roar", "plain", "meat", 4),
    "goat": ("goats", "bleat", "hill", "leaves", 4),
}
THING_COLOURS = {
    "banana": "yellow",
    "lemon": "yellow",
    "tomato": "red",
    "cherry": "red",
    "grass": "green",
    "leaf": "green",
    "sky": "blue",
    "sea": "blue",
    "snow": "white",
    "milk": "white",
    "coal": "black",
    "night": "black",
    "carrot": "orange",
    "plum": "purple",
    "chocolate": "brown",
    "cloud": "grey",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "happy": "sad",
    "old": "new",
    "day": "night",
    "open": "closed",
    "full": "empty",
    "light": "dark",
    "early": "late",
    "clean": "dirty",
    "wet": "dry",
    "loud": "quiet",
    "near": "far",
    "up": "down",
    "left": "right",
    "hard": "soft",
    "strong": "weak",
}
FOODS = "bread soup rice cake cheese honey pasta salad porridge stew pie jam".split()
PLACES = "market park school station library garden kitchen beach forest shop farm village harbour museum".split()
WEATHER = "sunny rainy windy cloudy cold warm snowy foggy".split()
FEELINGS = "happy sad tired proud hungry calm excited curious".split()
JOBS = "baker teacher farmer doctor painter driver gardener singer sailor tailor".split()
ADJECTIVES = "small old bright quiet pretty heavy soft round tall clean".split()
NEWS = (
    "the cake is ready|dinner is at six|the train is late|the door is open|the keys are on the table|"
    "the party starts at seven|the shop is closed|the garden looks lovely|the letter has arrived|"
    "the meeting is in the library|the dog is asleep|the soup is still hot|the bus leaves at nine|"
    "I will be home soon|we need more bread|the lesson was moved|the window is broken|I found the red hat"
).split("|")


def number_text(rng: random.Random, value: int) -> str:
    """Writes a number as digits or as a word.

    Args:
        rng: Source of the choice.
        value: A number from 0 to 20.

    Returns:
        For example ``"7"`` or ``"seven"``.
    """
    return str(value) if rng.random() < 0.6 else NUMBERS[value]


def an(word: str) -> str:
    """Puts the fitting article before a word.

    Args:
        word: The word that follows the article.

    Returns:
        The word with "a" or "an" before it.
    """
    return f"{'an' if word[0] in 'aeio' or word.startswith('umb') else 'a'} {word}"


def capital(text: str) -> str:
    """Makes the first letter of a text upper case and leaves the rest alone."""
    return text[:1].upper() + text[1:]


def made_up_name(rng: random.Random) -> str:
    """Builds a name that is in no list, so that copying cannot be replaced by knowing the names."""
    syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))]
    return capital("".join(syllables) + rng.choice(("", "", "n", "l", "r", "s")))


def pick_name(rng: random.Random) -> str:
    """Picks a listed name, or now and then a made-up one."""
    return made_up_name(rng) if rng.random() < 0.12 else rng.choice(NAMES)


def pick_names(rng: random.Random, count: int) -> list[str]:
    """Picks different listed names."""
    return rng.sample(NAMES, count)


def user(text: str) -> dict[str, str]:
    """Makes a user turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """Makes an assistant turn."""
    return {"role": "assistant", "content": text}


def question(prompt: str, answer: str) -> Document:
    """Makes a chat of one question and one answer."""
    return {"messages": [user(prompt), assistant(answer)]}


# ---------------------------------------------------------------------------------------------------- plain texts


def story(rng: random.Random) -> str:
    """Tells a short story about a thing that is lost, found, given or shared."""
    a, b = pick_names(rng, 2)
    item, place, day = rng.choice(list(ITEMS)), rng.choice(PLACES), rng.choice(DAYS)
    colour, feeling, food = rng.choice(COLOURS), rng.choice(FEELINGS), rng.choice(FOODS)
    thing = f"{colour} {item}"
    opening = rng.choice(
        (
            f"One {rng.choice(WEATHER)} {day}, {a} went to the {place}.",
            f"{a} lived near a {rng.choice(ADJECTIVES)} {place} with a friend called {b}.",
            f"It was {day}, and {a} felt {feeling}.",
            f"Once there was a {rng.choice(JOBS)} called {a} who loved {food}.",
        )
    )
    middle = rng.choice(
        (
            f'There {a} lost {an(thing)}. "Where is my {thing}?" asked {a}. {b} looked under the table and found '
            f'the {thing}. "Here is your {thing}," said {b}.',
            f'{b} had {an(thing)}. {a} liked the {thing} very much. "You can have it," said {b}, so {a} took '
            f"the {thing} home.",
            f"{a} and {b} sat in the {place} and shared some {food}. Then {b} showed {a} {an(thing)}. "
            f'"What a pretty {item}!" said {a}.',
            f'{a} wanted to buy {an(thing)} for {b}. The man in the shop said, "We have one {thing} left." '
            f"{a} paid for it and gave the {thing} to {b}.",
        )
    )
    ending = rng.choice(
        (
            f'"Thank you, {b}," said {a}.',
            f"Both of them were very {rng.choice(FEELINGS)} that evening.",
            f"After that, {a} and {b} ate {food} and went home.",
            f"{a} never forgot the {thing}.",
        )
    )
    return f"{opening} {middle} {ending}"


def animal_fact(rng: random.Random) -> str:
    """States facts about one animal."""
    name = rng.choice(list(ANIMALS))
    plural, sound, home, food, legs = ANIMALS[name]
    facts = [
        f'{capital(an(name))} says "{sound}".',
        f"{capital(plural)} live in the {home}.",
        f"{capital(plural)} like to eat {food}.",
        f"{capital(an(name))} has {NUMBERS[legs]} legs.",
    ]
    return " ".join(rng.sample(facts, rng.randint(2, 4)))


def calendar_fact(rng: random.Random) -> str:
    """States which day or month follows another."""
    names, kind = (DAYS, "day") if rng.random() < 0.7 else (MONTHS, "month")
    i = rng.randrange(len(names))
    here, after, before = names[i], names[(i + 1) % len(names)], names[i - 1]
    facts = [
        f"The {kind} after {here} is {after}.",
        f"The {kind} before {here} is {before}.",
        f"{after} comes after {here}.",
        f"{here} is a {kind}." if kind == "day" else f"{here} is one of the twelve months.",
    ]
    return " ".join(rng.sample(facts, 2))


def sum_parts(rng: random.Random) -> tuple[int, int]:
    """Picks two numbers whose sum is at most twenty."""
    a = rng.randint(0, 10)
    return a, rng.randint(0, 10)


def word_fact(rng: random.Random) -> str:
    """States facts about colours, opposites, numbers and sums."""
    thing, colour = rng.choice(list(THING_COLOURS.items()))
    word, opposite = rng.choice(list(OPPOSITES.items()))
    a, b = sum_parts(rng)
    n = rng.randint(0, 20)
    facts = [
        f"The colour of {thing} is {colour}.",
        f"The opposite of {word} is {opposite}. The opposite of {opposite} is {word}.",
        f"{capital(NUMBERS[a])} plus {NUMBERS[b]} is {NUMBERS[a + b]}.",
        f"{a} + {b} = {a + b}",
        f'The number {n} is written "{NUMBERS[n]}".',
        f"{capital(NUMBERS[n])} is written {n}.",
    ]
    return " ".join(rng.sample(facts, 3))


def description(rng: random.Random) -> str:
    """Describes a place and what stands in it."""
    place, other = rng.sample(PLACES, 2)
    first, second, third = rng.sample(list(ITEMS), 3)
    c1, c2 = rng.sample(COLOURS, 2)
    count = rng.randint(2, 12)
    sentences = [
        f"In the {place} there is {an(c1)} {first}.",
        f"Next to the {first} you can see {number_text(rng, count)} {c2} {ITEMS[second]}.",
        f"The {c1} {first} is {rng.choice(ADJECTIVES)}, and the {ITEMS[second]} are {c2}.",
        f"{pick_name(rng)} put {an(third)} under the {first}.",
        f"The {other} is not far from the {place}.",
        f"It is a {rng.choice(WEATHER)} day.",
    ]
    return " ".join(sentences[: rng.randint(3, 6)])


def random_word(rng: random.Random) -> str:
    """Picks a word of any of the lists."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(COLOURS)
    if kind == 1:
        return rng.choice(DAYS)
    if kind == 2:
        return str(rng.randint(1, 20))
    if kind in (3, 4):
        return rng.choice(list(ITEMS)) if rng.random() < 0.4 else rng.choice(list(ITEMS.values()))
    if kind == 5:
        return rng.choice(FOODS + PLACES)
    return pick_name(rng)


def echo(rng: random.Random) -> str:
    """Says words twice: bare and quoted, in lists and in lines.

    The quoted echo matters: after a quote mark a word has no space before it, so it is another token, and only
    this kind of text tells the model that the two tokens are one word.
    """
    words = [random_word(rng) for _ in range(rng.randint(3, 7))]
    quoted = ", ".join(f'"{word}"' for word in words)
    style = rng.randrange(5)
    if style == 0:
        return f"The words are {', '.join(words)}. In quotes they are {quoted}."
    if style == 1:
        lines = "\n".join(f"- {word}" for word in words)
        return f"List: {', '.join(words)}\n{lines}"
    if style == 2:
        return f"[{quoted}] means {' and '.join(words)}."
    if style == 3:
        a, b = pick_names(rng, 2)
        said = " ".join(words)
        return f'{a} said {said}. {b} wrote "{said}" on the paper.'
    return " ".join(words) + "\n" + " ".join(words)


def fact_card(rng: random.Random) -> str:
    """Writes a small card about an animal or a person, now and then with braces, and says it in a sentence."""
    animal = rng.choice(list(ANIMALS))
    _, sound, home, food, legs = ANIMALS[animal]
    name, job, month, age = pick_name(rng), rng.choice(JOBS), rng.choice(MONTHS), rng.randint(1, 20)
    if rng.random() < 0.5:
        fields = [("animal", animal), ("sound", sound), ("home", home), ("food", food), ("legs", legs)]
        sentence = f'{capital(an(animal))} says "{sound}" and eats {food}.'
    else:
        fields = [("name", name), ("job", job), ("age", age), ("born", month)]
        sentence = f"{name} is a {job} who is {NUMBERS[age]} years old and was born in {month}."
    fields = rng.sample(fields, rng.randint(2, len(fields)))
    if rng.random() < 0.5:
        card = "{" + ", ".join(f'"{k}": "{v}"' if isinstance(v, str) else f'"{k}": {v}' for k, v in fields) + "}"
    else:
        card = "\n".join(f"{key}: {value}" for key, value in fields)
    return f"{sentence}\n{card}" if rng.random() < 0.6 else f"{card}\n{sentence}"


# ---------------------------------------------------------------------------------------------------------- chats

REQUESTS = (
    "Please send {order} to {name}{day}.",
    "Could you send {order} to {name}{day}?",
    "Can you bring {order} to {name}{day}?",
    "I would like to order {order} for {name}{day}.",
    "I want {order} for {name}{day}.",
    "Please deliver {order} to {name}{day}.",
    "{Day} {name} needs {order}.",
    "{name} needs {order}{day}.",
    "{name} wants {order}{day}.",
    "{name} asked for {order}{day}.",
    "Hello! I need {order} for {name}{day}.",
    "Hi, {order} for {name}{day}, please.",
    "{Order} for {name}{day}, please.",
    "My friend {name} would love {order}{day}.",
    "{Day} please give {name} {order}.",
    "Please pack {order} for {name}. {Day} would be best.",
    "We need {order}{day}. Send it all to {name}.",
    "It is for {name}: {order}{day}.",
    "Get {name} {order}{day}.",
    "I am looking for {order} as a gift for {name}{day}.",
)
ANSWERS = (
    "Of course! I will send {order} to {name}{day}.",
    "Sure! {Order} will be sent to {name}{day}.",
    "Thank you for your order. {name} will get {order}{day}.",
    "No problem. I will pack {order} for {name}{day}.",
    "With pleasure! I will bring {order} to {name}{day}.",
    "Certainly. {name} will receive {order}{day}.",
    "All right, {order} for {name}{day}. I will take care of it.",
    "Great choice! I will deliver {order} to {name}{day}.",
)
CLOSINGS = (
    "",
    "",
    " Have a nice day!",
    " Is there anything else you need?",
    " Thank you for asking.",
    " I hope {name} will like it.",
    " Let me know if you need anything else.",
)
# The second form opens a sentence.
DAY_FORMS = (
    (" on {}", "On {}"),
    (" on {}", "On {}"),
    (" by {}", "By {}"),
    (" this {}", "This {}"),
    (" next {}", "Next {}"),
)


def order_phrase(count: str, colour: str | None, item: str) -> str:
    """Joins the parts of an order, for example "3 red apples"."""
    return " ".join(part for part in (count, colour, item) if part)


class Order:
    """One order of the small world: how many of what, for whom and when."""

    def __init__(self, rng: random.Random) -> None:
        """Draws the parts of an order.

        Args:
            rng: Source of all choices.
        """
        self.count = 1 if rng.random() < 0.1 else rng.randint(2, 20)
        self.colour = rng.choice(COLOURS) if rng.random() < 0.8 else None
        self.item = rng.choice(list(ITEMS))
        self.name = pick_name(rng)
        self.day = rng.choice(DAYS) if rng.random() < 0.85 else None
        self.day_form = rng.choice(DAY_FORMS)

    def phrase(self, count: str) -> str:
        """Writes the ordered things with the given form of the count."""
        return order_phrase(count, self.colour, self.item if self.count == 1 else ITEMS[self.item])

    def fill(self, template: str, count: str) -> str:
        """Fills a template of a request or an answer.

        Args:
            template: A template with the fields order, Order, name, day and Day.
            count: The count as it shall be written.

        Returns:
            The sentence.
        """
        phrase = self.phrase(count)
        later, first = (form.format(self.day) for form in self.day_form)
        return template.format(
            order=phrase, Order=capital(phrase), name=self.name, day=later if self.day else "", Day=first
        )

    def request(self, rng: random.Random) -> str:
        """Writes the order as a customer says it."""
        templates = [t for t in REQUESTS if self.day or "{Day}" not in t]
        return self.fill(rng.choice(templates), number_text(rng, self.count))

    def answer(self, rng: random.Random) -> str:
        """Writes the friendly confirmation, with the count as a word."""
        text = self.fill(rng.choice(ANSWERS), NUMBERS[self.count])
        return text + rng.choice(CLOSINGS).format(name=self.name)


def order_chat(rng: random.Random) -> Document:
    """Makes a chat about a shop order, at times with a correction or thanks after it."""
    order = Order(rng)
    messages = [user(order.request(rng)), assistant(order.answer(rng))]
    if rng.random() < 0.3:
        change = rng.randrange(5)
        if change == 0:
            order.count = rng.randint(2, 20)
            text = (
                f"{rng.choice(('Make it', 'Actually, make that', 'Sorry, I meant'))} {number_text(rng, order.count)}."
            )
        elif change == 1:
            order.colour = rng.choice(COLOURS)
            text = rng.choice(("In {} please.", "I would rather have {}.", "Sorry, {} would be better.")).format(
                order.colour
            )
        elif change == 2:
            order.name = pick_name(rng)
            text = rng.choice(("Send it to {} instead.", "Sorry, it is for {}.", "No, give it to {}.")).format(
                order.name
            )
        elif change == 3:
            order.day = rng.choice(DAYS)
            text = rng.choice(("{} would be better.", "Can we do {} instead?", "Not then, {} please.")).format(
                order.day
            )
        else:
            messages += [
                user("Thank you!"),
                assistant(rng.choice(("You are welcome!", "My pleasure. Have a nice day!"))),
            ]
            return {"messages": messages}
        messages += [
            user(text),
            assistant("No problem, I have changed it. " + order.fill(ANSWERS[0][11:], NUMBERS[order.count])),
        ]
    return {"messages": messages}


def message_chat(rng: random.Random) -> Document:
    """Makes a chat in which the assistant passes on a message."""
    name, news = pick_name(rng), rng.choice(NEWS)
    day = f" on {rng.choice(DAYS)}" if rng.random() < 0.3 else ""
    prompt = rng.choice(
        (
            f"Please tell {name}{day} that {news}.",
            f"Can you write to {name}{day} that {news}?",
            f'Send a message to {name}{day}: "{capital(news)}."',
            f"Let {name} know{day} that {news}.",
        )
    )
    answer = rng.choice(
        (
            f"Sure, I will tell {name}{day} that {news}.",
            f'Of course. I will write to {name}{day}: "{capital(news)}."',
            f"I will let {name} know{day} that {news}.",
        )
    )
    return question(prompt, answer)


def fact_chat(rng: random.Random) -> Document:
    """Makes a chat about one fact."""
    animal = rng.choice(list(ANIMALS))
    plural, sound, home, food, legs = ANIMALS[animal]
    thing, colour = rng.choice(list(THING_COLOURS.items()))
    word, opposite = rng.choice(list(OPPOSITES.items()))
    a, b = sum_parts(rng)
    n, i, m = rng.randint(0, 20), rng.randrange(7), rng.randrange(12)
    pairs = (
        (f"What does {an(animal)} say?", f'{capital(an(animal))} says "{sound}".'),
        (f"Where do {plural} live?", f"{capital(plural)} live in the {home}."),
        (f"What do {plural} eat?", f"{capital(plural)} like to eat {food}."),
        (f"How many legs does {an(animal)} have?", f"{capital(an(animal))} has {NUMBERS[legs]} legs."),
        (f"What colour is {thing}?", f"The colour of {thing} is {colour}."),
        (f"What is the opposite of {word}?", f"The opposite of {word} is {opposite}."),
        (f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."),
        (f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", f"{capital(NUMBERS[a])} plus {NUMBERS[b]} is {NUMBERS[a + b]}."),
        (f"How do you write {NUMBERS[n]} as a number?", f"{capital(NUMBERS[n])} is written {n}."),
        (f"How do you write {n} as a word?", f'The number {n} is written "{NUMBERS[n]}".'),
        (f"Which day comes after {DAYS[i]}?", f"{DAYS[(i + 1) % 7]} comes after {DAYS[i]}."),
        (f"Which month comes after {MONTHS[m]}?", f"{MONTHS[(m + 1) % 12]} comes after {MONTHS[m]}."),
    )
    picked = rng.sample(pairs, rng.choice((1, 1, 2)))
    return {"messages": [turn for q, a_ in picked for turn in (user(q), assistant(a_))]}


def reading_chat(rng: random.Random) -> Document:
    """Makes a chat in which the text that the user gives contains the answer."""
    a, b = pick_name(rng), rng.choice(NAMES)
    item, other = rng.sample(list(ITEMS), 2)
    c1, c2 = rng.sample(COLOURS, 2)
    n, day, place = rng.randint(2, 20), rng.choice(DAYS), rng.choice(PLACES)
    text = rng.choice(
        (
            f"On {day}, {a} bought {number_text(rng, n)} {c1} {ITEMS[item]} at the {place}. "
            f"{b} bought {an(c2)} {other}.",
            f"{b} has {an(c2)} {other}. {a} found {number_text(rng, n)} {c1} {ITEMS[item]} in the {place} on {day}.",
            f"{a} went to the {place} on {day} with {number_text(rng, n)} {c1} {ITEMS[item]}. "
            f"{b} came with {an(c2)} {other}.",
        )
    )
    pairs = [
        (f"What colour are the {ITEMS[item]}?", f"The {ITEMS[item]} are {c1}."),
        (f"What colour is the {other}?", f"The {other} is {c2}."),
        (f"How many {ITEMS[item]} are there?", f"There are {NUMBERS[n]} {ITEMS[item]}. As a number that is {n}."),
        (f"Who has the {ITEMS[item]}?", f"{a} has the {c1} {ITEMS[item]}."),
        (f"Who has the {other}?", f"{b} has the {c2} {other}."),
        ("Which day was it?", f"It was {day}."),
        (f"Where was {a}?", f"{a} was at the {place}."),
        (
            "Which names are in the text?",
            "The names are " + " and ".join(f'"{x}"' for x in sorted((a, b), key=text.index)) + ".",
        ),
        (
            "Which things are in the text?",
            f'In order, they are "{ITEMS[item]}" and "{other}".'
            if text.index(ITEMS[item]) < text.index(f" {other}")
            else f'In order, they are "{other}" and "{ITEMS[item]}".',
        ),
    ]
    first, *rest = rng.sample(pairs, rng.randint(1, 4))
    messages = [user(f"{text} {first[0]}"), assistant(first[1])]
    for asked, answered in rest:
        messages += [user(asked), assistant(answered)]
    return {"messages": messages}


def echo_chat(rng: random.Random) -> Document:
    """Makes a chat in which the assistant repeats, quotes or orders the user's words."""
    words = [random_word(rng) for _ in range(rng.randint(2, 6))]
    n = rng.randint(1, 20)
    listed = ", ".join(words)
    quoted = ", ".join(f'"{word}"' for word in words)
    pairs = (
        (f"Please repeat: {' '.join(words)}", " ".join(words)),
        (f"Say this again: {listed}", f"You said: {listed}"),
        (f"Put these words in quotes: {listed}", quoted),
        (f"Put each word in quotes: {' '.join(words)}", quoted),
        (f"What is the first word of: {listed}?", f'The first word is "{words[0]}".'),
        (f"What is the last word of: {listed}?", f'The last word is "{words[-1]}".'),
        (f"Write a list of {listed}.", "\n".join(f"- {word}" for word in words)),
        (f"My name is {words[0]}.", f"Nice to meet you, {words[0]}!"),
        (f"Write {NUMBERS[n]} with digits.", str(n)),
        (f"Write {n} as a word.", NUMBERS[n]),
    )
    return question(*rng.choice(pairs))


def small_talk(rng: random.Random) -> Document:
    """Makes a short polite chat."""
    name, food, day = pick_name(rng), rng.choice(FOODS), rng.choice(DAYS)
    place, feeling, weather = rng.choice(PLACES), rng.choice(FEELINGS), rng.choice(WEATHER)
    pairs = (
        (rng.choice(("Hello!", "Hi!", "Good morning!", "Hey there.")), "Hello! How can I help you today?"),
        (f"Hi, I am {name}.", f"Hello {name}! How can I help you today?"),
        ("How are you?", "I am fine, thank you. How are you?"),
        ("Who are you?", "I am a small helper. I can talk about simple things."),
        (f"I feel {feeling} today.", f"Thank you for telling me that you feel {feeling}."),
        (f"It is {weather} today.", f"A {weather} day can be nice. What will you do?"),
        (f"I like {food}.", f"{capital(food)} is a good choice. Many people like {food}."),
        (f"I will go to the {place} on {day}.", f"Have a nice time at the {place} on {day}!"),
        (f"{name} is a {(job := rng.choice(JOBS))}.", f"It must be nice for {name} to be a {job}."),
        ("Goodbye!", "Goodbye! Have a nice day."),
        ("What can you do?", "I can answer simple questions, tell stories and help with orders."),
    )
    picked = rng.sample(pairs, rng.choice((1, 2, 2, 3)))
    return {"messages": [turn for q, a in picked for turn in (user(q), assistant(a))]}


def story_chat(rng: random.Random) -> Document:
    """Makes a chat in which the assistant tells a story or describes something."""
    if rng.random() < 0.3:
        return question(rng.choice(("Describe a place.", "Tell me about a place.")), description(rng))
    return question(rng.choice(("Tell me a story.", "Please tell me a short story.", "A story, please!")), story(rng))


SYSTEM_TURNS = (
    "You are a helpful assistant.",
    "You are a friendly shop helper.",
    "Answer in plain sentences.",
    "You are a polite helper who answers briefly.",
)
TEXT_KINDS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (story, 4),
    (animal_fact, 2),
    (calendar_fact, 2),
    (word_fact, 4),
    (description, 4),
    (echo, 11),
    (fact_card, 5),
)
CHAT_KINDS: tuple[tuple[Callable[[random.Random], Document], float], ...] = (
    (order_chat, 26),
    (message_chat, 5),
    (fact_chat, 8),
    (reading_chat, 13),
    (echo_chat, 11),
    (small_talk, 5),
    (story_chat, 4),
)


def generate(count: int, seed: int) -> Iterator[Document]:
    """Generates documents, always the same ones for the same arguments.

    Args:
        count: How many documents to make.
        seed: Seed of the random choices.

    Yields:
        ``{"text": ...}`` for plain texts and ``{"messages": [...]}`` for chats.
    """
    rng = random.Random(seed)
    kinds = [*TEXT_KINDS, *CHAT_KINDS]
    weights = [weight for _, weight in kinds]
    for _ in range(count):
        made = rng.choices(kinds, weights)[0][0](rng)
        if isinstance(made, str):
            yield {"text": made}
            continue
        if rng.random() < 0.12:
            made["messages"].insert(0, {"role": "system", "content": rng.choice(SYSTEM_TURNS)})
        yield made
