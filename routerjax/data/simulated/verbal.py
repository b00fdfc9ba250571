"""Questions about dates, strings and sorting."""

import numpy as np

from routerjax.data.simulated.draw import Draw, listed
from routerjax.data.simulated.words import CITIES, MONTHS, NAMES, WEEKDAYS, WORDS

# Cities that do not change their clocks.
_EAST = (
    ("Tokyo", "UTC+9"), ("Singapore", "UTC+8"), ("Perth", "UTC+8"), ("Hanoi", "UTC+7"),
    ("Dhaka", "UTC+6"), ("Karachi", "UTC+5"), ("Dubai", "UTC+4"), ("Nairobi", "UTC+3"),
    ("Lagos", "UTC+1"),
)  # fmt: skip
_WEST = (
    ("Caracas", "UTC-4"), ("La Paz", "UTC-4"), ("Lima", "UTC-5"), ("Quito", "UTC-5"),
    ("Bogota", "UTC-5"), ("Guatemala City", "UTC-6"), ("Phoenix", "UTC-7"), ("Honolulu", "UTC-10"),
)  # fmt: skip


def dates(draw: Draw, level: int) -> list[str]:
    """From tomorrow's weekday to time zones and leap years."""
    day, month = draw.integers(1, 28), draw.one(MONTHS)
    if level == 0:
        templates: tuple[str, ...] = (
            "{0} says that today is {1}. What day of the week will it be in {2} days?",
            "It is {1} today, and {0} is leaving in {2} days. On which weekday does {0} leave?",
        )
        return draw.fill(templates, draw.one(NAMES), draw.one(WEEKDAYS), draw.integers(2, 6))
    if level == 1:
        templates = (
            "{0} starts a course in {1} that takes {2} months. In which month does it end?",
            "{0} moved house in {1} and changed jobs {2} months later. Which month was that?",
        )
        return draw.fill(templates, draw.one(NAMES), month, draw.integers(2, 11))
    if level == 2:
        first, gap, place = draw.integers(1, 12), draw.integers(3, 15), draw.one(CITIES)
        last = [a + b for a, b in zip(first, gap, strict=True)]
        templates = (
            "{0} stays in {1} from {2} to {3} {4}. How many nights is that?",
            "{0} arrives in {1} on {2} {4} and leaves on {3} {4}. How many nights does {0} stay?",
        )
        return draw.fill(templates, draw.one(NAMES), place, first, last, month)
    year = draw.integers(1975, 2060)
    if level == 3:
        templates = (
            "A contract starts on {} {} {} and runs for exactly {} days, the first day included. "
            "On which date does it end?",
            "Counting {3} days onwards from {0} {1} {2}, and counting that day itself as day one, "
            "which date is reached?",
        )
        return draw.fill(templates, day, month, year, draw.integers(35, 300))
    if level == 4:
        templates = (
            "On which day of the week did {} {} {} fall in the Gregorian calendar, and how many "
            "days of that year were left after it? Mind the leap years.",
            "Work out the weekday of {} {} {} in the Gregorian calendar, and the number of days "
            "that remained in that year, leap years considered.",
        )
        earlier = draw.integers(1801, 1974)
        return draw.fill(templates, day, month, earlier)
    templates = (
        "A flight leaves {0} ({1}) at {4:02d}:{5:02d} local time on {6} {7} {8}, takes {9} hours "
        "and {10} minutes to {2} ({3}), and the traveller continues by bus {11} hours after "
        "landing. On which date, at what local time and on which day of the week does the bus "
        "leave, and is that year a leap year?",
    )
    return draw.fill(
        templates,
        *zip(*draw.one(_EAST), strict=True),
        *zip(*draw.one(_WEST), strict=True),
        draw.integers(0, 23),
        draw.integers(0, 59),
        day,
        month,
        year,
        draw.integers(4, 15),
        draw.integers(2, 58),
        draw.integers(3, 30),
    )


def strings(draw: Draw, level: int) -> list[str]:
    """From counting letters to ciphers and chains of edits."""
    if level == 0:
        templates: tuple[str, ...] = (
            'How many letters does the word "{}" have?',
            'What is the first letter of the word "{}"?',
            'What is the last letter of the word "{}"?',
            'Write the word "{}" in capital letters.',
        )
        return draw.fill(templates, draw.one(WORDS))
    if level == 1:
        templates = (
            'Write the words "{} {}" without the letter {}.',
            'Take the words "{} {}" and leave out every letter {}.',
        )
        return draw.fill(templates, *zip(*draw.some(WORDS, 2), strict=True), draw.one("aeiourstn"))
    if level == 2:
        templates = (
            'Write the word "{}" backwards and then add the last three letters of "{}".',
            'Spell "{}" in reverse order and put the last three letters of "{}" behind it.',
        )
        return draw.fill(templates, *zip(*draw.some(WORDS, 2), strict=True))
    words = [listed(f'"{word}"' for word in row) for row in draw.some(WORDS, 4)]
    if level == 3:
        templates = (
            "Take the second letter of each of the words {0}, join them to a string, and say at "
            "which places of the alphabet these letters stand; then repeat this with the last "
            "letters.",
            "From each of the words {0} take the third letter. Join the letters, reverse the "
            "result, and count how many of them are vowels.",
        )
        return draw.fill(templates, words)
    if level == 4:
        templates = (
            'Encrypt the text "{} {} {}" with a Caesar cipher that shifts every letter forward by '
            "{} places, wrapping round from z to a, and then reverse each encrypted word.",
            'Apply a Caesar shift of the alphabet to "{} {} {}", {} places forward with '
            "wrap-around from z to a, and write every shifted word backwards.",
        )
        columns = zip(*draw.some(WORDS, 3), strict=True)
        return draw.fill(templates, *columns, draw.integers(2, 23))
    templates = (
        "Start with the words {0}. Reverse each word; replace every vowel by the vowel that "
        "follows it (a to e, e to i, i to o, o to u, u to a); delete every third character, not "
        "counting spaces; shift the remaining letters {1} places back in the alphabet, wrapping "
        "round; and finally sort the resulting strings by their last letter. Which string "
        "comes first?",
    )
    return draw.fill(templates, words, draw.integers(2, 9))


def sorting(draw: Draw, level: int) -> list[str]:
    """From three numbers to records with ties."""
    if level == 0:
        templates: tuple[str, ...] = (
            "Put the numbers {}, {} and {} in increasing order.",
            "Which is the smallest of {}, {} and {}?",
        )
        return draw.fill(templates, *zip(*draw.distinct(1, 99, 3), strict=True))
    if level == 1:
        templates = (
            "Sort these numbers from largest to smallest: {}.",
            "Arrange the numbers {} in decreasing order.",
        )
        return draw.fill(templates, [listed(row) for row in draw.distinct(10, 999, 5)])
    if level == 2:
        templates = (
            "Put the following words in alphabetical order: {}.",
            "Arrange the words {} as a dictionary would.",
        )
        return draw.fill(templates, [listed(row) for row in draw.some(WORDS, 6)])
    if level == 3:
        values = np.array(draw.distinct(-999, 999, 9)) / 100
        templates = (
            "Sort these positive and negative decimal numbers from smallest to largest: {}.",
            "Arrange the signed decimals {} in increasing order and name the median.",
        )
        return draw.fill(templates, [", ".join(map(str, row)) for row in values.tolist()])
    if level == 4:
        templates = (
            "Sort these {1} words by their last letter, words with the same last letter by length "
            "and then alphabetically: {0}. Write out the complete list.",
        )
        rows = draw.some(WORDS, 11)
        return draw.fill(templates, [", ".join(row) for row in rows], [len(row) for row in rows])
    who, ages, scores = draw.some(NAMES, 10), draw.table(19, 23, 10), draw.table(70, 74, 10)
    records = [
        "; ".join(f"{n} (aged {a}, {s} points)" for n, a, s in zip(*row, strict=True))
        for row in zip(who, ages, scores, strict=True)
    ]
    templates = (
        "Sort these competitors by points in descending order, break ties by age in ascending "
        "order, and break the remaining ties by name in reverse alphabetical order: {}. Who comes "
        "in place {}, and who in place {}?",
    )
    return draw.fill(templates, records, draw.integers(2, 5), draw.integers(6, 9))
