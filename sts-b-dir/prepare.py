"""The split of STS-B-DIR, `train_new.tsv dev_new.tsv test_new.tsv`, from GLUE's STS-B.

The similarities of GLUE's train and dev sets together are cut into 20 bins on [0, 5]. 50 pairs of
each bin go to validation, 50 to test and the rest to training, which keeps its imbalance:
5,249 / 1,000 / 1,000 pairs.

The paper's split was drawn without a seed, so a draw here has its sizes but other pairs. The
published numbers belong to the official files, which `python download.py --what split` fetches.

    python prepare.py --check                                       # verifies the files
    python prepare.py --data_dir glue_data/seed_0                   # from GLUE's train and dev
    python prepare.py --meta my_pairs.csv --data_dir data/my_pairs  # your own pairs
    python prepare.py --meta grades.csv --data_dir data/grades --target grade --low 0 --high 100
"""

import argparse
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

import program
from fetch import sha256_of, sole_use
from files import write_atomically
from held_out import add_held_out, caps_of, check_held_out, describe_split
from pair_file import FILES, MAX_SCORE, OFFICIAL, SIMILARITY, read_rows, read_tsv
from target import SPAN, add_target, check_target

COLUMNS = "index genre filename year old_index source1 source2 sentence1 sentence2 score".split()
OFFICIAL_SHA256 = {
    "train": "4da3322ae29f7ad1b7d03cdeafcb2480c276e5df1d08737678a7856697218a9a",
    "val": "9ec12d785aa817ffe4b0f88fde442d3bf57161d8cbeaa84aaa1fdf764cca6dd6",
    "test": "55f90b3c5a0b2947d5ff64c41536191e9e1ba3bb5ffe64aca5465ab25fa8e94c",
}
OWN = "none"  # the genre and the like of your own pairs
RAW_FILES = ("train.tsv", "dev.tsv")  # GLUE's test set has no scores
DATA_DIR = Path("glue_data/STS-B")
BINS, CAP = 20, 50  # bins of the similarity; most pairs per bin in val, and in test (the paper's)


def score_bins(scores, target=SIMILARITY):
    """Return the bin 0 ... 19 of each score, a long array: of width 0.25, and 5.0 is in 19.

    The range of your own target is cut into 20 bins, too, on its scale.
    """
    scores = np.asarray(scores, dtype=np.float64)
    places = target.scaled(scores) * (BINS / SPAN) if target.own else scores * (BINS / MAX_SCORE)
    return np.clip(places.astype(np.int64), 0, BINS - 1)


def pair_keys(table):
    """Return what tells pairs apart, [N] tuples of two sentences; their order does not count."""
    sentences = (table[column].str.strip() for column in ("sentence1", "sentence2"))
    return [tuple(sorted(pair)) for pair in zip(*sentences)]


def balanced_split(scores, pairs, cap=CAP, seed=0, target=SIMILARITY):
    """Assign each pair to train, val or test so that val and test are balanced over the bins.

    For each bin in turn its rows are shuffled, then n = min(count // 3, cap) go to val, the next
    n to test and the rest to train. A pair that occurs in several rows (122 rows of STS-B) stays
    in train, so that none is in two splits; the official files hold 30 that are.

    Args:
        scores: [N] similarities, 0 ... 5.
        pairs: [N] keys; rows with equal keys hold the same two sentences.
        cap: largest number of pairs per bin in val, and in test; or one for each, a pair.
        seed: of the shuffles.
        target: `target.Target` of the scores.
    Returns:
        Array [N] of "train", "val" or "test", in row order.
    Raises:
        ValueError: lengths differ or a score is not in [0, 5].
    Source: section 4 of the paper, for the sizes; its draw had no seed.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (len(pairs),):
        raise ValueError(f"scores of shape {scores.shape} for {len(pairs)} pairs: give one a pair")
    outside = np.flatnonzero(target.outside(scores))
    if len(outside):
        score = scores[outside[0]]
        raise ValueError(f"row {outside[0]} has the score {score}: it must be {target.range}")
    caps = (cap, cap) if isinstance(cap, int) else cap
    bins = score_bins(scores, target)
    occurrences = Counter(pairs)
    rng = random.Random(seed)
    split = np.full(len(pairs), "train", dtype=object)
    for number in range(BINS):
        rows = np.flatnonzero(bins == number).tolist()
        single = [row for row in rows if occurrences[pairs[row]] == 1]
        rng.shuffle(single)
        val, test = (min(len(rows) // 3, most, len(single) // 2) for most in caps)
        split[single[:val]] = "val"
        split[single[val : val + test]] = "test"
    return split


def read_table(path, target=SIMILARITY):
    """Read a file of pairs with all of COLUMNS, as text; a column that it lacks becomes OWN.

    Raises:
        FileNotFoundError, ValueError: no file, or rows that cannot be used, with their lines.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no file {path}: `python download.py --what raw split` fetches GLUE's STS-B and the "
            "official split; --meta takes your own pairs"
        )
    read_tsv(path, target)  # refuses every row that training would refuse
    header, rows = read_rows(path, quiet=True)
    rows = [fields for _, fields in rows]
    if len(set(header)) < len(header):
        raise ValueError(f"{path} has the columns {header}: give each its own name")
    if target.name in header:  # a column `score` next to it is another's
        names = {"score": "", target.name: "score"}
        header = [names.get(name, name) for name in header]
    table = pd.DataFrame(rows, columns=header, dtype=str)
    for column in set(COLUMNS) - set(header):
        # The number of its row tells where a pair of your own came from.
        table[column] = [str(i) for i in range(len(rows))] if column == "old_index" else OWN
    return table[COLUMNS]


def write_split(data_dir, tables):
    """Write the official layout from `{split: table}`; all is encoded before a file is touched."""
    contents = {}
    for name, table in tables.items():
        table = table.assign(index=np.arange(len(table)).astype(str))[COLUMNS]
        rows = [COLUMNS, *table.to_numpy().tolist()]
        contents[FILES[name]] = "".join("\t".join(row) + "\n" for row in rows).encode()
    with sole_use(Path(data_dir)):
        for file, content in contents.items():
            write_atomically(Path(data_dir) / file, content)


def report_counts(counts, expected=None):
    """Print the number of pairs per split next to the expected one."""
    for name in FILES:
        note = f"   expected {expected[name]:>6,}" if expected else ""
        note += "   DIFFERS" if expected and counts[name] != expected[name] else ""
        print(f"{name:>6} {counts[name]:>7,}{note}")


def check_split(data_dir, cap=CAP, expected=None, source=None, target=SIMILARITY):
    """Print the counts of a split's files and return what is wrong, as a list of sentences.

    Args:
        data_dir, cap: folder of the three files; largest number of pairs per bin in val and test.
        expected, source: number of pairs by split, and the table that was split, or None.
        target: `target.Target` of the scores.
    """
    paths = {name: Path(data_dir) / file for name, file in FILES.items()}
    problems = []
    tables = {name: read_table(path, target) for name, path in paths.items()}
    counts = {name: len(table) for name, table in tables.items()}
    if all((table["genre"] == OWN).all() for table in tables.values()):
        expected = None
    report_counts(counts, expected)
    if expected is not None and counts != expected:
        problems.append(f"the counts are not the expected {expected}")
    official = [p.name for name, p in paths.items() if sha256_of(p) == OFFICIAL_SHA256[name]]
    print(f"official files by their sha256: {', '.join(official) or 'none'}")
    if 0 < len(official) < len(FILES):
        problems.append("only some are official: see `python download.py --what split --overwrite`")
    # A pair is counted once per split, so what is counted twice is in two of them.
    splits = Counter(key for table in tables.values() for key in set(pair_keys(table)))
    twice = sorted(key for key in splits if splits[key] > 1)
    if len(official) == len(FILES):
        print(f"{len(twice)} pairs of sentences are in two splits, which is so in these files")
    elif twice:
        problems.append(f"{len(twice)} pairs are in two splits, the first {twice[0]!a}")
    val, test = (
        np.bincount(score_bins(tables[name]["score"].astype(float), target), minlength=BINS)
        for name in ("val", "test")
    )
    caps = (cap, cap) if isinstance(cap, int) else cap
    differ = caps[0] == caps[1] and (val != test).any()
    if differ or max(val) > caps[0] or max(test) > caps[1]:
        val, test = val.tolist(), test.tolist()
        problems.append(f"val and test differ, or exceed {cap}, in pairs per bin: {val}, {test}")
    if source is not None:
        frames = (source, pd.concat(tables.values()))
        given, found = (Counter(zip(*(t[c] for c in COLUMNS[-3:]))) for t in frames)
        if given != found:
            lost, new = (given - found).total(), (found - given).total()
            problems.append(f"{lost} pairs of --meta are in no split, {new} are not in --meta")
    return problems


def parse_args(argv=None):
    """Parse the command line; flags that contradict each other are an error."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR, help="folder of the split")
    parser.add_argument("--raw_dir", type=Path, default=DATA_DIR, help="GLUE's train.tsv, dev.tsv")
    parser.add_argument("--meta", type=Path, help="your own pairs: sentence1, sentence2, score")
    parser.add_argument("--cap", type=int, help=f"most pairs per bin in val, and test [{CAP}]")
    add_held_out(parser.add_argument, "--cap")
    add_target(parser.add_argument, SIMILARITY)
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--overwrite", action="store_true", help="replace existing files")
    mode.add_argument("--check", action="store_true", help="verify the files, write nothing")
    args = parser.parse_args(argv)
    check_held_out(parser, args, CAP, bool(args.meta))
    check_target(parser, args, SIMILARITY)
    if args.cap < 1:
        parser.error(f"--cap is {args.cap}: it must be >= 1")
    if args.meta and args.data_dir == DATA_DIR:
        parser.error("--meta needs its own --data_dir: the default is STS-B's")
    return args


def main(argv=None):
    """Write the split, or verify it with --check; returns the exit status."""
    args = parse_args(argv)
    target = SIMILARITY.of(args)
    expected = None if args.meta or target.own else OFFICIAL
    if args.check:
        source = args.meta and read_table(args.meta, target)
        cap = args.cap
        if args.val_per_bin or args.test_per_bin:
            cap = args.val_per_bin or cap, args.test_per_bin or cap
        problems = check_split(args.data_dir, cap, expected, source, target)
        print("\n".join(problems) or f"{args.data_dir} is as it should be")
        return int(bool(problems))
    there = [name for name in FILES.values() if (args.data_dir / name).exists()]
    if there and not args.overwrite:
        raise ValueError(f"{args.data_dir} holds {there}: verify by --check or use --overwrite")
    sources = [args.meta] if args.meta else [args.raw_dir / name for name in RAW_FILES]
    table = pd.concat([read_table(path, target) for path in sources], ignore_index=True)
    scores = table["score"].astype(float).to_numpy()
    caps = caps_of(args, np.bincount(score_bins(scores, target), minlength=BINS))
    split = balanced_split(scores, pair_keys(table), caps, args.seed, target)
    if "val" not in split:
        raise ValueError("no bin has three different pairs, so none goes to val and test: add some")
    write_split(args.data_dir, {name: table[split == name] for name in FILES})
    print(f"wrote {', '.join(FILES.values())} to {args.data_dir}, {len(table):,} pairs")
    report_counts(Counter(split), expected)
    if args.meta:
        describe_split(target, scores, split, args, score_bins(scores, target))
    else:
        print("The paper drew its split without a seed, so this is NOT the official one, to which")
        print("the published numbers belong: `python download.py --what split` fetches that.")
    return 0


if __name__ == "__main__":
    program.run(main)
