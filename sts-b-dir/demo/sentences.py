"""Made-up pairs of sentences of graded similarity, and a vector for each of their words.

A sentence tells who does what, to which thing and where. The second one tells the same in other
words, or exchanges some of these for something related or for something else.
"""

from itertools import product

import numpy as np

from datasets import MAX_SCORE

# Each line is a group of related meanings; words of one meaning are joined by a slash.
WORDS = {
    "subject": """
        boy/lad girl/lass baby/infant
        doctor/physician teacher/instructor policeman/officer
        king/monarch knight/cavalier jester/clown
        woman/lady man/gentleman""",
    "verb": """
        carrying/transporting pulling/dragging lifting/raising
        watching/observing inspecting/examining finding/discovering
        buying/purchasing selling/vending
        cleaning/washing repairing/fixing painting/colouring""",
    "object": """
        car/automobile bicycle/bike truck/lorry
        chair/seat sofa/couch table/desk
        violin/fiddle flute/pipe
        box/crate bag/sack cup/mug""",
    "adjective": """
        big/large small/tiny
        red/scarlet blue/azure green/emerald
        old/ancient new/modern""",
    "place": """
        forest/woods meadow/field garden/park
        street/road market/bazaar
        hospital/clinic school/college shop/store""",
}
# How much of the meaning each part holds; they sum to 1.
SHARES = {"subject": 0.25, "verb": 0.3, "object": 0.25, "adjective": 0.1, "place": 0.1}
KEPT = {"same": 1.0, "related": 0.5, "other": 0.0}  # how much of a part's meaning is left
TEMPLATES = (
    "{subject} is {verb} {object} in the {place}.",
    "In the {place}, {subject} is {verb} {object}.",
    "There is {subject} {verb} {object} in the {place}.",
    "In the {place} there is {subject} who is {verb} {object}.",
)
FUNCTION_WORDS = "A An a an In in the There there is who , .".split()
NOISE = 0.3  # largest difference of a score from what the sentences say
D_WORD = 32  # size of a word vector


def parse_words():
    """Return `{part: {(group, meaning): [words]}}` of WORDS."""
    return {
        part: {
            (i, j): meaning.split("/")
            for i, line in enumerate(text.split("\n")[1:])
            for j, meaning in enumerate(line.split())
        }
        for part, text in WORDS.items()
    }


VOCABULARY = parse_words()


def choose_other(part, meaning, kept, rng):
    """Return a meaning of `part` that is the same as `meaning`, related to it or neither."""
    if kept == "same":
        return meaning
    group = meaning[0]
    fits = [
        other
        for other in VOCABULARY[part]
        if other != meaning and (other[0] == group) == (kept == "related")
    ]
    return fits[rng.integers(len(fits))]


def with_article(words):
    """Return `words` behind "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def write_sentence(meanings, rng):
    """Return a sentence that tells `meanings`, in words and an order that are drawn."""
    words = {part: VOCABULARY[part][meanings[part]] for part in WORDS}
    words = {part: options[rng.integers(len(options))] for part, options in words.items()}
    words["object"] = with_article(f"{words.pop('adjective')} {words['object']}")
    words["subject"] = with_article(words["subject"])
    sentence = TEMPLATES[rng.integers(len(TEMPLATES))].format(**words)
    return sentence[0].upper() + sentence[1:]


def make_pair(score, rng):
    """Return two sentences whose similarity is about `score`.

    Args:
        score: similarity, 0 ... 5.
        rng: `numpy.random.Generator`; the same state gives the same pair.
    Raises:
        ValueError: the score is outside.
    """
    if not 0 <= score <= MAX_SCORE:
        raise ValueError(f"score is {score}: it must be in [0, {MAX_SCORE:g}]")
    ways = [
        way
        for way in product(KEPT, repeat=len(SHARES))
        if abs(MAX_SCORE * np.dot([*SHARES.values()], [KEPT[k] for k in way]) - score) <= NOISE
    ]
    way = ways[rng.integers(len(ways))]
    first = {part: list(VOCABULARY[part])[rng.integers(len(VOCABULARY[part]))] for part in WORDS}
    second = {p: choose_other(p, first[p], kept, rng) for p, kept in zip(SHARES, way)}
    return write_sentence(first, rng), write_sentence(second, rng)


def make_vectors(rng):
    """Return `{word: array [D_WORD]}`: a group's vector, a meaning's and a little of its own."""
    vectors = {word: rng.normal(size=D_WORD) for word in FUNCTION_WORDS}
    for meanings in VOCABULARY.values():
        groups = {group: rng.normal(size=D_WORD) for group, _ in meanings}
        for (group, _), words in meanings.items():
            vector = 0.7 * groups[group] + 0.7 * rng.normal(size=D_WORD)
            vectors |= {word: vector + 0.15 * rng.normal(size=D_WORD) for word in words}
    return vectors
