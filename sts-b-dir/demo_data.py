"""Write made-up sentence pairs of graded similarity, so that the folder runs without STS-B.

`demo/sentences.py` makes the pairs; the score says how much of the first sentence's meaning the
second one keeps, with noise like that of annotators. Validation and test set are balanced over the
20 bins of the score, the training set is as skewed as STS-B-DIR's. `vectors.txt` holds a vector for
each word, near for words of one meaning. No number obtained on them says anything about STS-B.

    python demo_data.py --out glue_data/demo      # seconds
    python train.py --data_dir glue_data/demo --word_embs_file glue_data/demo/vectors.txt \\
        --d_word 32 --d_hid 64 --lr 2e-3 --val_interval 24 --max_vals 10
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import program
from demo.sentences import make_pair, make_vectors
from files import write_atomically
from pair_file import FILES, MAX_SCORE
from prepare import BINS, read_table, report_counts, score_bins, write_split

# Pairs of STS-B-DIR's training set in each of the 20 bins.
TRAIN_COUNTS = (514, 114, 96, 111, 334, 133, 134, 135, 367, 132,
                178, 178, 628, 328, 265, 332, 559, 155, 136, 420)  # fmt: skip


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


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
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

    rng = np.random.default_rng(args.seed)
    tables = {}
    seen = set()
    sizes = {"train": args.n_train, "val": args.n_val, "test": args.n_test}
    for split, size in sizes.items():
        rows = []
        shares = TRAIN_COUNTS if split == "train" else np.ones(BINS)
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
    program.run(main)
