"""The label counts of the benchmarks: from the real labels to label_counts.csv, and back.

A row of the csv is one bin of labels, label_low <= y < label_high (the last one's end belongs to
it), with its shot and its number of training, validation and test samples; of NYUD2-DIR the number
of training pixels. A number that is not known is left empty. Of a benchmark whose counts by label
are not known there is one row over the whole range: the sizes.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ["benchmark", "label_low", "label_high", "shot", "train", "val", "test"]
SPLITS = ("train", "val", "test")
# What is known where no labels are: the range and the sizes of train, validation and test.
# IMDB-WIKI-DIR: appendix B of the paper, and ages up to 186. SHHS-DIR: notes on the paper, not
# verified.
SIZES = {"imdb_wiki_dir": (0, 187, 191_509, 11_022, 11_022), "shhs_dir": (0, 100, 1_892, 369, 369)}
STS_B_FILES = {"train": "train_new.tsv", "val": "dev_new.tsv", "test": "test_new.tsv"}


def find(folder, path):
    """Return a file of the shared folder, or say what is missing."""
    path = Path(folder) / path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: --counts takes the folder that holds data/ and golden/; "
            "without it the counts of teaser/label_counts.csv are drawn"
        )
    return path


def rows_of(benchmark, edges, shots, counts):
    """Return a benchmark's rows of the csv, without empty bins at either end.

    Args:
        benchmark: its name.
        edges: [B + 1] of the bins.
        shots: [B] of names.
        counts: {split: [B] of whole numbers}, without the splits that are not known.
    """
    empty = pd.array([pd.NA] * len(shots), dtype="Int64")
    table = pd.DataFrame({"label_low": edges[:-1], "label_high": edges[1:], "shot": shots})
    for split in SPLITS:
        table[split] = pd.array(counts[split], dtype="Int64") if split in counts else empty
    table.insert(0, "benchmark", benchmark)
    used = np.flatnonzero(table[list(SPLITS)].fillna(0).sum(axis=1))
    return table.iloc[used[0] : used[-1] + 1]


def count_ages(folder):
    """Count the ages of AgeDB-DIR; shots as in section 4 of the paper."""
    table = pd.read_csv(find(folder, "data/agedb.csv"))
    edges = np.arange(122)
    counts = {s: np.histogram(table["age"][table["split"] == s], edges)[0] for s in SPLITS}
    train = counts["train"]
    shots = np.select([train > 100, train < 20], ["many", "few"], "medium")
    return rows_of("agedb_dir", edges, shots, counts)


def count_similarities(folder):
    """Count the similarities of STS-B-DIR; shots are the released code's lists of bins."""
    edges = np.linspace(0, 5, 51).astype(np.float32)
    counts = {}
    for split, name in STS_B_FILES.items():
        # A sentence may hold a single quotation mark: 3 is csv.QUOTE_NONE.
        table = pd.read_csv(find(folder, f"data/sts_b_dir/{name}"), sep="\t", quoting=3)
        labels = table["score"].to_numpy(np.float32)
        counts[split] = np.bincount(np.searchsorted(edges[1:-1], labels, side="right"), None, 50)
    shots = read_shots(folder, "sts_b_shot_bins", 50)
    return rows_of("stsb_dir", np.round(edges.astype(float), 1), shots, counts)


def count_depths(folder):
    """Take the training pixels of NYUD2-DIR by bucket of 0.1 m, and the released code's shots."""
    with np.load(find(folder, "golden/weights_nyud2.npz")) as numbers:
        train = numbers["train_bucket_counts"].astype(np.int64)
    shots = read_shots(folder, "nyud2_shot_bins", 100)
    return rows_of("nyud2_dir", np.round(np.arange(101) / 10, 1), shots, {"train": train})


def read_shots(folder, name, bins):
    """Return the shot of each bin from the lists of the released code."""
    lists = json.loads(find(folder, "golden/shot_bins.json").read_text(encoding="utf-8"))[name]
    shots = np.full(bins, "few", dtype=object)
    for shot in ("many", "medium"):
        shots[lists[shot]] = shot
    return shots


def count_all(folder):
    """Count the labels that the shared folder holds, and add the sizes of the other benchmarks.

    Args:
        folder: with data/agedb.csv, data/sts_b_dir/ and golden/.

    Returns:
        DataFrame with the columns COLUMNS.

    Raises:
        FileNotFoundError: if one of the files is missing.
    """
    tables = [count_ages(folder), count_depths(folder), count_similarities(folder)]
    for benchmark, (low, high, *sizes) in SIZES.items():
        counts = {split: [size] for split, size in zip(SPLITS, sizes)}
        tables.append(rows_of(benchmark, np.array([low, high]), [None], counts))
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def csv_bytes(table):
    """Return the counts as the content of a csv: whole numbers without a point, else one digit."""
    text = table.copy()
    for column in ("label_low", "label_high"):
        text[column] = [f"{value:g}" for value in table[column]]
    return text.to_csv(index=False, lineterminator="\n").encode()


def read_counts(path, benchmark):
    """Return one benchmark's rows of the csv."""
    table = pd.read_csv(path, dtype=dict.fromkeys(SPLITS, "Int64"))
    return table[table["benchmark"] == benchmark].reset_index(drop=True)
