"""Write made-up sentence pairs of graded similarity, so that the folder runs without STS-B.

A sentence tells who does what, to which thing and where. The second one tells the same in other
words, or exchanges some of these for something related or for something else; the score says how
much of the meaning is left, with noise as of annotators. Validation and test set are balanced over
the 20 bins of the score, the training set is as skewed as STS-B-DIR's. `vectors.txt` holds a vector
for each word, near for words of one meaning. No number obtained on them says anything about STS-B.

    python demo_data.py --out glue_data/demo      # seconds
    python train.py --data_dir glue_data/demo --word_embs_file glue_data/demo/vectors.txt \\
        --d_word 32 --d_hid 64 --lr 2e-3 --val_interval 24 --max_vals 10
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from datasets import FILES, MAX_SCORE
from prepare import BINS, read_table, report_counts, score_bins, write_split
from utils import write_atomically

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
# Pairs of STS-B-DIR's training set in each of the 20 bins.
TRAIN_COUNTS = (514, 114, 96, 111, 334, 133, 134, 135, 367, 132,
                178, 178, 628, 328, 265, 332, 559, 155, 136, 420)  # fmt: skip
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


def draw_scores(counts, rng):
    """Return scores in random order, as many in each bin as `counts` says, with 3 decimals.

    Four in five are a mean of five whole marks, as in STS-B: it is why every other one of the 50
    buckets that re-weighting uses has few samples.
    """
    width, scores = MAX_SCORE / BINS, []
    for number in np.repeat(np.arange(BINS), counts):
        low, high = number * width, (number + 1) * width
        means = [mark / 5 for mark in range(26) if score_bins(mark / 5) == number]
        if rng.random() < 0.8:
            scores.append(means[rng.integers(len(means))])
        else:
            scores.append(np.floor(rng.uniform(low, high) * 1000) / 1000)
    return rng.permutation(scores)


def spread(total, shares):
    """Return whole numbers that sum to `total` and are about proportional to `shares`."""
    reached = np.cumsum(shares) * total / np.sum(shares)
    return np.diff(np.round(reached).astype(int), prepend=0)


def make_vectors(rng):
    """Return `{word: array [D_WORD]}`: a group's vector, a meaning's and a little of its own."""
    vectors = {word: rng.normal(size=D_WORD) for word in FUNCTION_WORDS}
    for meanings in VOCABULARY.values():
        groups = {group: rng.normal(size=D_WORD) for group, _ in meanings}
        for (group, _), words in meanings.items():
            vector = 0.7 * groups[group] + 0.7 * rng.normal(size=D_WORD)
            vectors |= {word: vector + 0.15 * rng.normal(size=D_WORD) for word in words}
    return vectors


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default="glue_data/demo", help="folder of the data")
    parser.add_argument("--n_train", type=int, default=1500, help="number of training pairs")
    parser.add_argument("--n_val", type=int, default=200, help="number of validation pairs")
    parser.add_argument("--n_test", type=int, default=200, help="number of test pairs")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier demo data")
    args = parser.parse_args(argv)
    for flag, least in (("n_train", 1), ("n_val", 1), ("n_test", 1), ("seed", 0)):
        if getattr(args, flag) < least:
            parser.error(f"--{flag} is {getattr(args, flag)}: it must be >= {least}")
    return args


def main(argv=None):
    """Write the three files of pairs and the word vectors, and print the counts."""
    args = parse_args(argv)
    files = [args.out / name for name in (*FILES.values(), "vectors.txt")]
    there = [path for path in files if path.exists()]
    if there and not args.overwrite:
        raise ValueError(f"{there[0]} exists: replace it with --overwrite or give another --out")
    pairs = [path for path in there if path.suffix == ".tsv"]
    foreign = [path for path in pairs if set(read_table(path)["genre"]) != {"demo"}]
    if foreign:
        raise ValueError(f"{foreign[0]} holds other pairs: give another --out")

    rng, tables, seen = np.random.default_rng(args.seed), {}, set()
    sizes = {"train": args.n_train, "val": args.n_val, "test": args.n_test}
    for split, size in sizes.items():
        rows, shares = [], TRAIN_COUNTS if split == "train" else np.ones(BINS)
        for score in draw_scores(spread(size, shares), rng):
            while (pair := make_pair(score, rng)) in seen:
                pass  # no pair is in two splits, nor twice in one
            seen.add(pair)
            rows.append(dict(sentence1=pair[0], sentence2=pair[1], score=f"{score:.3f}"))
        table = pd.DataFrame(rows).assign(genre="demo", filename="demo", year="none")
        table = table.assign(source1="none", source2="none")
        tables[split] = table.assign(old_index=np.arange(len(rows)).astype(str))
    write_split(args.out, tables)
    lines = [f"{w} {' '.join(f'{x:.4f}' for x in v)}\n" for w, v in make_vectors(rng).items()]
    write_atomically(args.out / "vectors.txt", "".join(lines).encode())
    print(f"wrote {', '.join(FILES.values())} and vectors.txt to {args.out}")
    report_counts(sizes)


if __name__ == "__main__":
    main()
