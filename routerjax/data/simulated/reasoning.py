"""Questions of logic, about programs and about tables."""

from routerjax.data.simulated.draw import Draw, listed
from routerjax.data.simulated.words import CITIES, ITEMS, NAMES

_JOBS = ("dentists", "pilots", "teachers", "farmers", "nurses", "bakers", "lawyers", "painters")
_HOBBIES = ("cyclists", "swimmers", "dancers", "climbers", "runners", "gardeners", "chess players")
_ORDERS = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
    ("richer", "richest", "poorest"),
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")


def logic(draw: Draw, level: int) -> list[str]:
    """From one syllogism to seating orders with a condition; each has exactly one answer."""
    if level < 2:
        columns = draw.one(_JOBS), draw.one(_HOBBIES), draw.one(NAMES), draw.one(CITIES)
        easy = (
            "All {0} in {3} are {1}. {2} is one of the {0} in {3}. Is {2} one of the {1}?",
            "Every one of the {0} of {3} belongs to the {1}, and {2} is one of those {0}. Does {2} "
            "belong to the {1}?",
        )
        harder = (
            "None of the {0} in {3} are {1}. {2}, who lives in {3}, is one of the {1}. Can {2} be "
            "one of the {0} in {3}?",
            "In {3}, no {0} are {1}. If {2} of {3} is one of the {1}, can {2} be one of the {0}?",
        )
        return draw.fill((easy, harder)[level], *columns)
    size = (3, 5, 6, 7)[level - 2]
    people, clue_order = draw.some(NAMES, size), draw.orders(size - 1)
    if level < 4:
        kinds = draw.one(_ORDERS)
        clues = [
            " ".join(f"{row[i]} is {kind[0]} than {row[i + 1]}." for i in order)
            for row, order, kind in zip(people, clue_order, kinds, strict=True)
        ]
        most, least = [kind[1] for kind in kinds], [kind[2] for kind in kinds]
        if level == 2:
            return draw.fill(("{} Who is the {}?", "{} Who is {} of the three?"), clues, most)
        templates: tuple[str, ...] = (
            "{0} Name the {1} and the {2} of the five, and then the one in the middle.",
        )
        return draw.fill(templates, clues, most, least)
    seats = [
        " ".join(f"{row[i]} sits directly to the left of {row[i + 1]}." for i in order)
        for row, order in zip(people, clue_order, strict=True)
    ]
    names = [listed(sorted(row)) for row in people]
    place = draw.one(_ORDINALS[1:5])
    if level == 4:
        templates = (
            "Six friends, {0}, sit in one row. {1} Who sits {2} from the left, and how many of the "
            "friends sit to the right of that seat?",
        )
        return draw.fill(templates, names, seats, place)
    pairs = draw.distinct(0, size - 1, 2)
    one, two = ([row[p[k]] for row, p in zip(people, pairs, strict=True)] for k in (0, 1))
    templates = (
        "Seven friends, {0}, sit in one row. {1} If {3} sits further to the left than {4}, then "
        "the friend who is {2} from the left pays for dinner; otherwise the friend who is {2} from "
        "the right pays. The payer then swaps seats with the person in the middle seat, unless the "
        "payer sits there already. Who paid, and who sits at the two ends of the row now?",
    )
    return draw.fill(templates, names, seats, place, one, two)


_PROGRAMS = (
    ("print({0} + {1})", "a = {0}\nprint(a + {1})", "print({1} - {0})"),
    (
        "a = {0}\nb = {1}\nif a > b:\n    print(a)\nelse:\n    print(b + 1)",
        "x = {0}\nx = x + {2}\nif x > {1}:\n    x = x - 1\nprint(x)",
    ),
    (
        "total = {0}\nfor i in range({2}):\n    total = total + i\nprint(total)",
        "total = {0}\nfor i in range(1, {2}):\n    total += 2 * i\nprint(total - {1})",
    ),
    (
        "n = {0}\nsteps = 0\nwhile n > {2}:\n    if n % 2 == 0:\n        n = n // 2\n    else:\n"
        "        n = n - 3\n    steps += 1\nprint(n, steps)",
        "n, k = {1}, 0\nwhile n > 0:\n    n = n - {2}\n    if n % 3 == 0:\n        k += n\n"
        "print(n, k)",
    ),
    (
        "values = [i * i % {1} for i in range({2}, {2} + 9)]\ncounts = {{}}\nfor v in values:\n"
        "    counts[v] = counts.get(v, 0) + 1\nbest = max(counts, key=lambda v: (counts[v], v))\n"
        "print(best, sum(v for v in values if v > {0} % 10), sorted(set(values))[-2:])",
    ),
    (
        "from functools import lru_cache\n\n@lru_cache\ndef f(n, k):\n    if n < {2}:\n"
        "        return n + k\n    if n % 3 == 0:\n        return f(n // 3, k + 1) - f(n - 4, k)\n"
        "    return f(n - 2, k) + k * (n % {2})\n\nrows = []\n"
        "for i in range({0} % 5, {0} % 5 + 6):\n    for j in range(i):\n"
        "        if (i + j) % 2:\n            rows.append(f({1} + i, j))\n"
        "print(len(rows), sum(rows) % {1}, max(rows, key=lambda r: (r % 7, r)))",
        "class Node:\n    def __init__(self, value, children=()):\n        self.value = value\n"
        "        self.children = list(children)\n\ndef build(n, depth):\n    if depth == 0:\n"
        "        return Node(n)\n    return Node(n % {2}, [build(n * 2 + i, depth - 1) for i in "
        "range(1 + n % 3)])\n\ndef fold(node, acc=1):\n    for child in reversed(node.children):\n"
        "        acc = (acc * 3 + fold(child, acc % 5)) % {1}\n    return acc + node.value\n\n"
        "print(fold(build({0}, 3)))",
    ),
)


def code(draw: Draw, level: int) -> list[str]:
    """What a Python program prints: from one line to recursion."""
    templates = [
        f"{question}\n\n{program}"
        for program in _PROGRAMS[level]
        for question in (
            "What does this Python program print?",
            "Read this Python code. What is its output?",
        )
    ]
    numbers = draw.integers(10, 79), draw.integers(23, 97), draw.integers(3, 9)
    return draw.fill(templates, *numbers)


_ROWS = (3, 3, 4, 5, 7, 9)


def tables(draw: Draw, level: int) -> list[str]:
    """From reading one cell to filtered totals over two tables."""
    rows = _ROWS[level]
    cities, items = draw.some(CITIES, rows), draw.some(ITEMS, 3)
    sold, sent_back = draw.distinct(100, 999, rows), draw.distinct(2, 60, rows)
    columns = list(zip(cities, sold, sent_back, strict=True))
    if level < 4:
        tables = [
            "city | sold | returned\n"
            + "\n".join(f"{c} | {s} | {r}" for c, s, r in zip(*row, strict=True))
            for row in columns
        ]
        one, two = [row[0] for row in cities], [row[-1] for row in cities]
        what = [row[0] for row in items]
        templates: tuple[str, ...] = (
            ("The table is about {1}.\n\n{0}\n\nHow many were sold in {2}?",),
            ("The table is about {1}.\n\n{0}\n\nWhich city sold the most?",
             "The table is about {1}.\n\n{0}\n\nWhich city had the fewest returned?"),
            ("The table is about {1}.\n\n{0}\n\nHow many were sold in {2} and {3} together, after "
             "taking off those returned there?",),
            ("The table is about {1}.\n\n{0}\n\nLeave out the city with the most returned. How "
             "many were sold on average in each of the other cities, and how far is {2} from "
             "that?",),
        )[level]  # fmt: skip
        return draw.fill(templates, tables, what, one, two)
    kinds = draw.table(0, 2, rows)
    tables = [
        "city | item | sold | returned\n"
        + "\n".join(f"{c} | {names[k]} | {s} | {r}" for c, s, r, k in zip(*row, which, strict=True))
        for row, which, names in zip(columns, kinds, items, strict=True)
    ]
    prices = [
        "item | price in dollars\n" + "\n".join(f"{n} | {p}" for n, p in zip(*row, strict=True))
        for row in zip(items, draw.distinct(2, 40, 3), strict=True)
    ]
    what, limit = [row[0] for row in items], draw.integers(20, 35)
    templates = (
        ("{0}\n\n{1}\n\nTogether, how many dollars did the cities with fewer than {3} returned "
         "take for what they sold? Returned items are paid back.",),
        ("{0}\n\n{1}\n\nReturned items are paid back, and a city with {3} or more returned also "
         "pays a fine of 10 dollars for each. For every item, add up what the cities that list it "
         "earned. Which item earned the most, by how many dollars does it lead the second, and "
         "what share of all earnings comes from cities with an even number sold?",),
    )[level - 4]  # fmt: skip
    return draw.fill(templates, tables, prices, what, limit)
