"""The table of scores of SHHS, and the split that is balanced over them.

The training set keeps the imbalance of the scores. Validation and test get at most `cap` nights of
each score, so that frequent scores weigh no more there than others.
"""

import random

import numpy as np
import pandas as pd

from datasets import SCORE, label_to_bucket
from held_out import caps_of
from outside import shown

EXPECTED = {"train": 1_892, "val": 369, "test": 369}  # from notes on the paper, not verified
SHARE = EXPECTED["val"] / sum(EXPECTED.values())  # of the nights that go to val, and to test
# SF-36 general health in the tables of visits 2 and 1; names from memory, see --score_column.
SCORE_COLUMNS = ("gh_s2", "gh_s1")


def balanced_split(scores, cap=None, seed=666, target=SCORE):
    """Assign each night to train, val or test so that val and test are balanced over the scores.

    For each bucket of the score in turn its nights are shuffled in row order. Then
    min(count // 3, cap) go to val, as many of the next to test and the rest to train.

    Args:
        scores: [N] scores.
        cap: largest number of nights per bucket in val, and in test, or one for each, a pair; None
            takes the one that brings val closest to 369 of 2,630 nights.
        seed: of the shuffles.
        target: `target.Target` of the scores.

    Returns:
        N strings, 'train', 'val' or 'test', and the cap.
    """
    buckets = label_to_bucket(np.asarray(scores, dtype=np.float64), target)
    counts = np.bincount(buckets)
    cap = papers_cap(counts) if cap is None else cap
    caps = (cap, cap) if isinstance(cap, int) else cap
    split = np.full(len(buckets), "train", dtype=object)
    rng = random.Random(seed)
    for bucket in np.flatnonzero(counts):
        rows = np.flatnonzero(buckets == bucket).tolist()
        rng.shuffle(rows)
        val, test = (min(len(rows) // 3, most) for most in caps)
        split[rows[:val]] = "val"
        split[rows[val : val + test]] = "test"
    return split.tolist(), cap


def papers_cap(counts):
    """Return the cap that brings val closest to the paper's share, of the buckets' counts [B]."""
    held = np.minimum(counts[:, None] // 3, np.arange(1, max(counts.max() // 3, 1) + 1))
    return 1 + int(np.abs(held.sum(axis=0) - SHARE * counts.sum()).argmin())


def split_by_flags(scores, args, target):
    """Split by the flags of prepare.py; returns the split and its caps in words.

    Without --cap, --max_held_out alone sets the caps, or else the paper's share does.

    Raises:
        ValueError: if nothing can be held out.
    """
    counts = np.bincount(label_to_bucket(np.asarray(scores, dtype=np.float64), target))
    if args.cap is None:
        largest = max(1, int(counts.max()) // 3)
        args.cap = largest if args.max_held_out else papers_cap(counts)
    caps = caps_of(args, counts)
    split, _ = balanced_split(scores, caps, args.seed, target)
    if not {"val", "test"} <= {*split}:
        raise ValueError(
            f"no bucket of {target.words} has three {args.noun}s, so none goes to val and test: "
            "add some, or make wider buckets with --bin_width"
        )
    return split, f"at most {caps[0]} of a bucket in val and {caps[1]} in test"


def read_scores(path, id_column, score_column):
    """Read the table of scores, and print which column of which file they are.

    Args:
        path: csv in UTF-8 or Latin-1.
        id_column: its column of ids, in any case.
        score_column: its column of scores; '' or None takes the first of SCORE_COLUMNS.

    Returns:
        DataFrame with id (text) and score (NaN where it is no number).

    Raises:
        FileNotFoundError, ValueError: naming the file, if it is no such table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: `python download.py` says how to get the data")
    options = {"dtype": str, "keep_default_na": False, "index_col": False}
    try:
        try:
            table = pd.read_csv(path, encoding="utf-8-sig", **options)
        except UnicodeDecodeError:  # the National Sleep Research Resource's are not all UTF-8
            table = pd.read_csv(path, encoding="latin-1", **options)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is no table with commas ({shown(error)}): correct it") from error
    names = {name.lower(): name for name in table.columns}
    wanted = [score_column] if score_column else SCORE_COLUMNS
    found = [names[name.lower()] for name in wanted if name.lower() in names]
    if not found or id_column.lower() not in names:
        near = [name for name in table.columns if "gh" in name.lower() or "id" in name.lower()]
        raise ValueError(
            f"{path} lacks {id_column} or {' or '.join(wanted)}; of its {len(names)} columns, near "
            f"are {', '.join(map(shown, near[:20]))}: name them with --id_column and --score_column"
        )
    if table.empty:
        raise ValueError(f"{path} has no row below its header")
    print(f"labels: column {found[0]} of {path}")
    scores = pd.to_numeric(table[found[0]], errors="coerce")
    ids = table[names[id_column.lower()]].fillna("").str.strip()
    return pd.DataFrame({"id": ids, "score": scores})
