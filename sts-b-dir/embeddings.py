"""Word vectors of the words in use, from a GloVe or word2vec text file, with a cache of them."""

import hashlib
import logging
import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fetch import sole_use
from files import write_atomically
from outside import check_archive, shown

CHUNK = 1 << 24  # bytes of whole lines that are read at once
LONGEST = 1 << 20  # bytes of the first line that are looked at: a binary file may have no line
HEADER = re.compile(rb"\d+ +(\d+)\s*")  # of word2vec and fastText: number of words, size
DECIMAL = re.compile(rb"[-+]?\d*\.\d+(e[-+]?\d+)?")  # a number that is hardly part of a word
NUMBER = re.compile(rb"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf|infinity)", re.IGNORECASE)
VERSION = 1  # of the cache: raise it when its content changes


def read_word_vectors(file, words, d_word, cache=None, quiet=False):
    """Return the vectors that a text file holds for `words`; the first line of a word counts.

    Args:
        file: one word a line, then its `d_word` numbers, separated by single spaces; a word may
            hold spaces, and bytes that are no UTF-8. A first line `N D`, as word2vec writes, is
            passed over.
        words: N strings.
        d_word: size of a vector.
        cache: folder that keeps what was found, so that the next start does not read the file; or
            None. A cache of another file or other words, or a damaged one, is built again.
        quiet: show no progress bar.

    Returns:
        vectors: float32 array [N, d_word], zeros for a word that the file lacks.
        found: bool array [N].

    Raises:
        FileNotFoundError: without the file.
        ValueError: it holds vectors of another size, or a word's line is damaged.
    """
    file, words = Path(file), list(words)
    if d_word < 1:
        raise ValueError(f"d_word is {d_word}: the size of a vector is >= 1")
    if not file.is_file():
        raise FileNotFoundError(
            f"no file of word vectors at {file}: `python download.py --what glove` fetches GloVe "
            "840B (2.2 GB); --word_embs_file takes any other GloVe or word2vec text file"
        )
    if cache is None:
        return _scan(file, words, d_word, quiet)

    # Taken before reading: a file that is changed meanwhile leaves a cache that is stale.
    facts = file.stat()
    key = np.array([VERSION, facts.st_size, facts.st_mtime_ns, d_word], dtype=np.int64)
    text = "\0".join(words).encode("utf-8", "surrogatepass")
    path = Path(cache) / f"{file.name}.{hashlib.sha256(text).hexdigest()[:16]}.{d_word}d.npz"
    vectors = np.zeros((len(words), d_word), dtype=np.float32)
    if (kept := _load_cache(path, key, len(words), d_word)) is not None:
        found, vectors[found] = kept
        return vectors, found
    vectors, found = _scan(file, words, d_word, quiet)
    try:
        with sole_use(path.parent):
            write_atomically(
                path, lambda out: np.savez(out, key=key, found=found, vectors=vectors[found])
            )
    except OSError as error:  # the vectors are read: a full or read-only disk stops nothing
        logging.warning("the word vectors cannot be cached in %s: %s", cache, error)
    return vectors, found


def _load_cache(path, key, count, d_word):
    """Return the cached `found` and its vectors, or None where they must be read again."""
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as arrays:
            if not np.array_equal(arrays["key"], key):
                return None
            found, vectors = arrays["found"], arrays["vectors"]
    except FileNotFoundError:
        return None
    except Exception as error:  # damage shows in a dozen ways; none of them matters here
        logging.warning("the cache %s cannot be read and is built again: %s", path, error)
        return None
    whole = found.dtype == bool and found.shape == (count,) and vectors.dtype == np.float32
    return (found, vectors) if whole and vectors.shape == (found.sum(), d_word) else None


def _scan(file, words, d_word, quiet):
    """Read the file from its first line to its last, or to where every word is found."""
    # Only wanted words' numbers are parsed: one in a hundred of 2.2 million lines. What
    # stands before a line's first space tells which lines may be of such a word.
    tokens = [word.encode("utf-8", "surrogatepass") for word in words]
    rows = {token: row for row, token in enumerate(dict.fromkeys(tokens))}
    beginnings = {token.partition(b" ")[0] for token in rows}
    vectors = np.zeros((len(rows), d_word), dtype=np.float32)
    found, left = np.zeros(len(rows), dtype=bool), len(rows)
    progress = tqdm(
        total=file.stat().st_size, desc=file.name, unit="B", unit_scale=True, disable=quiet
    )
    with open(file, "rb") as lines, progress:
        number = 1 + _pass_header(file, lines, d_word)
        while left and (chunk := lines.readlines(CHUNK)):
            for n, line in enumerate(chunk, start=number):
                if line[: line.find(b" ")] not in beginnings:
                    continue
                word, *fields = line.rstrip().rsplit(b" ", d_word)
                row = rows.get(word)
                if row is None:
                    # Another word, which holds spaces, or the line of a wanted one is too long.
                    head, *surplus = word.split(b" ")
                    if head not in rows or not surplus or not all(map(DECIMAL.fullmatch, surplus)):
                        continue
                    row, fields = rows[head], [*surplus, *fields]
                if not found[row]:
                    vectors[row] = _numbers(fields, d_word, f"{file}, line {n}")
                    found[row], left = True, left - 1
            number += len(chunk)
            progress.update(sum(map(len, chunk)))
    order = [rows[token] for token in tokens]
    return vectors[order], found[order]


def _pass_header(file, lines, d_word):
    """Move behind the header, if there is one; the size of the vectors must be `d_word`.

    Returns:
        The number of lines passed, 0 or 1.
    """
    first = lines.readline(LONGEST)
    header = HEADER.fullmatch(first)
    start = len(first) if header else 0
    line = lines.readline(LONGEST) if header else first
    lines.seek(start)
    # A word may hold spaces: the size is how many numbers stand at the line's end.
    fields, size = line.rstrip().split(b" ")[1:], 0
    for field in reversed(fields):
        if not NUMBER.fullmatch(field):
            break
        size += 1
    if not size:
        raise ValueError(
            f"{file} begins with {line[:40]!r}, not with a word and its numbers: --word_embs_file "
            "takes text, unpacked"
        )
    for n in (size, int(header[1]) if header else size):
        if n != d_word:
            raise ValueError(
                f"{file} holds vectors of {n} numbers, --d_word is {d_word}: give --d_word {n}, or "
                "another file by --word_embs_file"
            )
    return int(start > 0)


def _numbers(fields, d_word, place):
    """Return the numbers of one line as a float32 array, all of them finite."""
    if len(fields) != d_word:
        raise ValueError(f"{place}: {len(fields)} numbers behind the word, expected {d_word}")
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(field) for field in fields]).astype(np.float32)
    except ValueError as error:
        raise ValueError(f"{place}: {shown(error)}; the file is damaged, fetch it again") from error
    if not np.isfinite(vector).all():
        value = fields[int(np.flatnonzero(~np.isfinite(vector))[0])].decode("ascii", "replace")
        raise ValueError(
            f"{place}: {shown(value)} is no finite number; correct it or fetch it again"
        )
    return vector
