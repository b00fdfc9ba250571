"""Questions about numbers: arithmetic, units, sequences, word problems."""

from routerjax.data.simulated.draw import Draw, listed
from routerjax.data.simulated.words import ITEMS, NAMES


def arithmetic(draw: Draw, level: int) -> list[str]:
    """From adding two numbers to divisors and prime factors."""
    if level == 0:
        templates: tuple[str, ...] = ("What is {} plus {}?", "Add {} and {}.", "{} + {} = ?")
        return draw.fill(templates, draw.integers(2, 99), draw.integers(2, 99))
    if level == 1:
        large, small = draw.integers(200, 999), draw.integers(11, 199)
        return draw.fill(("What is {} minus {}?", "Work out {} - {}."), large, small)
    if level == 2:
        templates = ("Multiply {} by {}.", "What is {} times {}?")
        return draw.fill(templates, draw.integers(12, 99), draw.integers(12, 99))
    if level == 3:
        templates = (
            "Work out ({} + {}) × {} - {}, taking care of the brackets.",
            "Evaluate the expression ({} + {}) × {} - {}.",
        )
        columns = draw.integers(20, 99), draw.integers(20, 99), draw.integers(11, 49)
        return draw.fill(templates, *columns, draw.integers(100, 999))
    if level == 4:
        templates = (
            "Find the remainder when the product of {}, {} and {} is divided by {}.",
            "Multiply {}, {} and {} together and divide the product by {}. What remainder is left?",
        )
        factors = [draw.integers(101, 999) for _ in range(3)]
        return draw.fill(templates, *factors, draw.integers(13, 97))
    return draw.fill(
        (
            "Find the greatest common divisor of {} and {}, find the number of prime factors of {} "
            "counted with multiplicity, multiply the two results, and give the remainder of that "
            "product modulo {}.",
            "Let g be the greatest common divisor of {} and {}, and let k be the number of prime "
            "factors of {}, counted with multiplicity. Determine the remainder of g × k modulo {}.",
        ),
        *(draw.integers(10_000, 999_999) for _ in range(3)),
        draw.integers(7, 97),
    )


_SMALLER = (
    ("metres", "kilometres"), ("grams", "kilograms"), ("minutes", "hours"), ("seconds", "minutes"),
    ("centimetres", "metres"), ("millilitres", "litres"), ("days", "weeks"), ("months", "years"),
)  # fmt: skip
_DECIMAL = (
    ("kilograms", "grams"), ("kilometres", "metres"), ("litres", "millilitres"),
    ("tonnes", "kilograms"), ("metres", "centimetres"), ("square metres", "square centimetres"),
)  # fmt: skip
_FACTORS = (
    ("miles", "kilometres", "one mile as 1.609 kilometres"),
    ("pounds", "kilograms", "one pound as 0.4536 kilograms"),
    ("inches", "centimetres", "one inch as 2.54 centimetres"),
    ("gallons", "litres", "one US gallon as 3.785 litres"),
    ("ounces", "grams", "one ounce as 28.35 grams"),
    ("acres", "hectares", "one acre as 0.4047 hectares"),
)


def units(draw: Draw, level: int) -> list[str]:
    """From a table unit to chains of conversions with prices."""
    if level == 0:
        pairs = draw.one(_SMALLER)
        templates: tuple[str, ...] = ("How many {} are there in {} {}?", "How many {} make {} {}?")
        small, large = [p[0] for p in pairs], [p[1] for p in pairs]
        return draw.fill(templates, small, draw.integers(2, 60), large)
    if level == 1:
        pairs = draw.one(_DECIMAL)
        amount = [x / 10 for x in draw.integers(11, 999)]
        templates = ("Convert {} {} to {}.", "Express {} {} in {}.")
        return draw.fill(templates, amount, [p[0] for p in pairs], [p[1] for p in pairs])
    if level == 2:
        rows = draw.one(_FACTORS)
        templates = (
            "Convert {} {} to {}, taking {}, and round to one decimal place.",
            "How much is {} {} in {}? Take {} and round to one decimal place.",
        )
        return draw.fill(templates, draw.integers(12, 980), *zip(*rows, strict=True))
    if level == 3:
        templates = (
            "A {} moves at a steady {} miles per hour. What is its speed in metres per second, "
            "rounded to two decimal places, if one mile is 1609 metres?",
            "The top speed of a {} is {} miles per hour. With a mile of 1609 metres, express that "
            "in metres per second and round to two decimal places.",
        )
        movers = ("cyclist", "train", "bus", "ferry", "lorry", "drone", "tram", "sailing boat")
        return draw.fill(templates, draw.one(movers), draw.integers(5, 65))
    if level == 4:
        templates = (
            "A rectangular tank is {} feet long, {} feet wide and {} inches deep. How many litres "
            "of water does it hold when it is {} per cent full? One foot is 30.48 centimetres, one "
            "foot is 12 inches; round to the nearest litre.",
        )
        sides = draw.integers(3, 19), draw.integers(2, 9), draw.integers(14, 70)
        return draw.fill(templates, *sides, draw.integers(21, 95))
    return draw.fill(
        (
            "A van burns {} litres of diesel per 100 kilometres. Diesel costs {} euros per litre, "
            "one euro is worth {} dollars and one mile is 1.609 kilometres. The driver covers {} "
            "miles on each of {} days and pays a toll of {} dollars a day. What does the whole "
            "journey cost in dollars per mile? Round to the nearest cent.",
        ),
        [x / 10 for x in draw.integers(52, 129)],
        [x / 100 for x in draw.integers(129, 219)],
        [x / 100 for x in draw.integers(102, 124)],
        draw.integers(41, 480),
        draw.integers(2, 9),
        draw.integers(3, 25),
    )


def sequences(draw: Draw, level: int) -> list[str]:
    """From equal steps to interleaved and recursive sequences."""
    start, step = draw.integers(1, 60), draw.integers(2, 19)
    pairs = list(zip(start, step, strict=True))
    if level == 0:
        terms = [listed([a + k * d for k in range(5)], "then") for a, d in pairs]
        return draw.fill(("What number comes next: {}?", "Continue counting: {}."), terms)
    if level == 1:
        terms = [", ".join(str(a + (9 - k) * d) for k in range(5)) for a, d in pairs]
        templates: tuple[str, ...] = (
            "The numbers {} go down in equal steps. Which number follows?",
            "Counting down in equal steps: {}. What is the next number?",
        )
        return draw.fill(templates, terms)
    if level == 2:
        ratios = draw.integers(2, 5)
        terms = [
            ", ".join(str(a * r**k) for k in range(4)) for a, r in zip(start, ratios, strict=True)
        ]
        templates = (
            "Each number in the list {} is the one before it times the same factor. What is next?",
            "Find the next term of the geometric sequence {}.",
        )
        return draw.fill(templates, terms)
    if level == 3:
        terms = [", ".join(str(a + d * k * k) for k in range(1, 7)) for a, d in pairs]
        templates = (
            "The differences between neighbours in {} are not equal but grow evenly. Which two "
            "numbers follow?",
            "In the quadratic sequence {}, work out the next two terms from the second "
            "differences.",
        )
        return draw.fill(templates, terms)
    if level == 4:
        rows = []
        for a, b in pairs:
            # With b = 2a the sequence would be geometric, and many recurrences would fit it.
            row = [a, b + (b == 2 * a)]
            for _ in range(4):
                row.append(row[-1] + 2 * row[-2])
            rows.append(", ".join(map(str, row)))
        templates = (
            "In the sequence {} every term from the third on is a fixed combination of the two "
            "terms before it, with whole-number weights. Find the recurrence and the tenth term.",
        )
        return draw.fill(templates, rows)
    rows = [
        ", ".join(f"{a + d * k}, {b * 2**k}" for k in range(4))
        for (a, d), b in zip(pairs, draw.integers(1, 9), strict=True)
    ]
    templates = (
        "Two sequences are interleaved in {}: the terms at odd places form an arithmetic sequence, "
        "those at even places a geometric one. Determine both rules, find the terms at places {} "
        "and {} of the combined list, and give the remainder of their sum modulo {}.",
    )
    odd, even = [2 * x + 1 for x in draw.integers(5, 12)], [2 * x for x in draw.integers(6, 12)]
    return draw.fill(templates, rows, odd, even, draw.integers(7, 29))


_EVENTS = (
    "{0} buys {1} more.",
    "{0} gives {1} to {2}.",
    "{0} finds {1} in a drawer.",
    "{0} loses {1} on the way home.",
    "{2} brings {0} another {1}.",
    "{0} swaps {1} for a pen from {2}.",
)
_STEPS = (1, 2, 3, 4, 5, 7)


def word_problems(draw: Draw, level: int) -> list[str]:
    """A story of one to seven events; the last levels end with money."""
    steps = _STEPS[level]
    people = draw.some(NAMES, 2)
    items = draw.one(ITEMS)
    # More at the start than all events together can take away.
    start = draw.integers(20 * steps, 20 * steps + 60)
    kinds, amounts = draw.table(0, len(_EVENTS) - 1, steps), draw.table(2, 19, steps)
    opening = [
        f"{who} has {count} {item}."
        for (who, _), count, item in zip(people, start, items, strict=True)
    ]
    events = [
        " ".join(_EVENTS[k].format(who, x, friend) for k, x in zip(ks, xs, strict=True))
        for (who, friend), ks, xs in zip(people, kinds, amounts, strict=True)
    ]
    owners = [who for who, _ in people]
    if level < 4:
        templates: tuple[str, ...] = (
            "{0} {1} How many {2} does {3} have now?",
            "{0} {1} How many {2} are left with {3}?",
        )
        return draw.fill(templates, opening, events, items, owners)
    templates = (
        "{0} {1} After that {3} packs the {2} into boxes of {4}, keeps those that do not fill a "
        "box, sells every full box for {5} dollars and pays {6} per cent of the takings in fees. "
        "How many dollars does {3} have left?",
    )
    columns = draw.integers(6, 12), draw.integers(3, 29), draw.integers(4, 15)
    return draw.fill(templates, opening, events, items, owners, *columns)
