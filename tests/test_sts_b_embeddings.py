"""Word vectors from text files: what is read, what is refused, and the cache."""

import multiprocessing
import os
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import load

embeddings = load("sts-b-dir", "embeddings")
D = 3


def read(file, words, d_word=D, **options):
    return embeddings.read_word_vectors(file, words, d_word, quiet=True, **options)


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def vectors(tmp_path):
    return write(tmp_path / "v.txt", "cat 1 2 3\ndog -4.5 5e-1 6\nCat 7 8 9\n")


# ---- what is read ----


def test_found_words_have_the_numbers_and_others_zeros(vectors):
    matrix, found = read(vectors, ["dog", "Cat", "bird", "cat", "DOG", "dog"])
    assert (matrix.dtype, found.dtype) == (np.float32, bool)
    assert found.tolist() == [True, True, False, True, False, True]
    assert matrix.tolist() == [
        [-4.5, 0.5, 6], [7, 8, 9], [0, 0, 0], [1, 2, 3], [0, 0, 0], [-4.5, 0.5, 6],
    ]  # fmt: skip
    matrix, found = read(vectors, [])
    assert (matrix.shape, found.shape) == ((0, 3), (0,))


def test_the_first_line_of_a_word_counts(tmp_path):
    file = write(tmp_path / "v.txt", "a 1 1 1\nb 2 2 2\na 3 3 3\na damaged\nc 4 4 4")
    matrix, found = read(file, ["a", "c"])  # the last line has no end
    assert found.all()
    assert matrix.tolist() == [[1, 1, 1], [4, 4, 4]]


def test_a_word_may_hold_spaces(tmp_path):
    text = ". . . 1 2 3\n. 4 5 6\nat name@domain.com 7 8 9\nat 1 1 1\n"
    file = write(tmp_path / "v.txt", text)
    matrix, found = read(file, [".", "at", ". . .", "name@domain.com", ". ."])
    assert found.tolist() == [True, True, True, False, False]
    assert matrix[:3].tolist() == [[4, 5, 6], [1, 1, 1], [1, 2, 3]]


@pytest.mark.parametrize("end", [b"\n", b" \n", b"\r\n", b" \r\n"])
@pytest.mark.parametrize("header", [b"", b"4 3"])
def test_word2vec_files_have_a_header_and_spaces_at_the_end(tmp_path, header, end):
    lines = [
        *([header] if header else []),
        b"</s> 0 0 0",
        b"4 1 2 3",
        b"caf\xc3\xa9 4 5 6",
        b"z 7 8 9",
    ]
    file = write(tmp_path / "v.txt", end.join(lines) + end)
    matrix, found = read(file, ["4", "café", "z", "3"])
    assert found.tolist() == [True, True, True, False]
    assert matrix[:3].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_bytes_that_are_no_utf8_and_odd_spaces_do_no_harm(tmp_path):
    text = (
        b"\xff\xfe 1 1 1\na\xc2\xa0b 2 2 2\n\xe2\x80\xa8 3 3 3\n\x85 4 4 4\nb\x0c 6 6 6\nb 5 5 5\n"
    )
    file = write(tmp_path / "v.txt", text)
    matrix, found = read(file, ["b", "a\u00a0b", "\u2028", "\udcff", "a"])
    assert found.tolist() == [True, True, True, False, False]
    assert matrix[:3, 0].tolist() == [5, 2, 3]


@settings(max_examples=60, deadline=None)
@given(
    entries=st.dictionaries(
        st.text("ab. é", min_size=1, max_size=4),
        st.lists(st.floats(-1e30, 1e30), min_size=4, max_size=4),
        min_size=1, max_size=12,
    ),
    wanted=st.lists(st.text("ab. é", max_size=4), max_size=8),
    chunk=st.integers(1, 60),
)  # fmt: skip
def test_what_was_written_is_read(tmp_path_factory, entries, wanted, chunk):
    file = tmp_path_factory.mktemp("v") / "v.txt"
    write(file, "".join(f"{w} {' '.join(map(repr, map(float, v)))}\n" for w, v in entries.items()))
    words = [*wanted, *list(entries)[::2]]
    before, embeddings.CHUNK = embeddings.CHUNK, chunk  # lines lie on both sides of a chunk's end
    try:
        matrix, found = read(file, words, 4)
    finally:
        embeddings.CHUNK = before
    for word, vector, there in zip(words, matrix, found):
        assert there == (word in entries)
        np.testing.assert_array_equal(vector, np.float32(entries.get(word, [0] * 4)))


def test_real_vectors_are_those_of_another_reader(shared_data):
    file = shared_data / "vectors" / "glove50_cased.txt"
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    words = [line.split(" ")[0] for line in lines]
    wanted = [*words[::7], "no-such-word-here"]
    matrix, found = read(file, wanted, 50)
    assert found.tolist() == [True] * (len(wanted) - 1) + [False]
    expected = np.loadtxt([line.partition(" ")[2] for line in lines[::7]], comments=None)
    np.testing.assert_array_equal(matrix[:-1], expected.astype(np.float32))


# ---- what is refused ----


def test_a_missing_file_names_what_helps(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"download\.py --what glove.*--word_embs_file"):
        read(tmp_path / "no.txt", ["a"])
    with pytest.raises(FileNotFoundError):
        read(tmp_path, ["a"], cache=tmp_path)


@pytest.mark.parametrize(
    "text", ["cat 1 2 3\n", "1 3\ncat 1 2 3\n", "the cat 1 2 3\n", "5 1 2 3\n"]
)
@pytest.mark.parametrize("d_word", [2, 4, 300])
def test_another_size_is_an_error_with_both_numbers(tmp_path, text, d_word):
    file = write(tmp_path / "v.txt", text)
    with pytest.raises(ValueError, match=rf"of 3 numbers, --d_word is {d_word}: give --d_word 3"):
        read(file, ["cat"], d_word)
    read(file, ["cat"], 3)


def test_a_header_that_its_lines_contradict_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="of 4 numbers, --d_word is 3"):
        read(write(tmp_path / "v.txt", "1 4\ncat 1 2 3\n"), ["cat"])


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\3\4 binary\0\1", b"2 3\ncat \0\0\x80?\0\0\0@", b"cat one two three\n", b"\n"],
)
def test_what_is_no_text_file_of_vectors_is_an_error(tmp_path, content):
    with pytest.raises(ValueError, match="not with a word and its numbers"):
        read(write(tmp_path / "v.txt", content), ["cat"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cat 1 2", "2 numbers behind the word, expected 3"),
        ("cat", "0 numbers"),
        ("cat 0.1 0.2 0.3 0.4", "4 numbers"),
        ("cat 0.1 0.2 0.3 0.4 -5.0", "5 numbers"),
        ("cat 1 two 3", "two"),
        ("cat 1  3", "could not convert"),
        ("cat 1 nan 3", "nan is no finite number"),
        ("cat 1 2 -inf", "-inf is no finite number"),
        ("cat 1 1e39 3", "1e39 is no finite number"),
    ],
)
def test_a_damaged_line_of_a_wanted_word_is_an_error_with_its_number(tmp_path, line, message):
    for header, number in (("", 3), ("3 3\n", 4)):
        file = write(tmp_path / "v.txt", f"{header}a 1 2 3\nb 1 2 3\n{line}\nd 1 2 3\n")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=rf"v\.txt, line {number}: .*{message}"):
                read(file, ["cat", "d"], cache=tmp_path / "cache")
            assert not (tmp_path / "cache").exists()
            assert read(file, ["d"])[0].tolist() == [[1, 2, 3]]  # nobody asked for the other


def test_a_size_below_one_is_an_error(vectors):
    with pytest.raises(ValueError, match="d_word is 0"):
        read(vectors, ["cat"], 0)


# ---- the cache ----


@pytest.fixture
def scans(monkeypatch):
    """Counts how often a file is read."""
    count, scan = [], embeddings._scan
    monkeypatch.setattr(embeddings, "_scan", lambda *a: count.append(1) or scan(*a))
    return count


def test_the_second_start_reads_the_cache_alone(vectors, tmp_path, scans):
    words = ["bird", "Cat", "cat", "cat"]
    first = read(vectors, words, cache=tmp_path / "c")
    second = read(vectors, words, cache=tmp_path / "c")
    assert len(scans) == 1
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    second[0][:] = 5  # what is returned may be written to
    (name,) = (path.name for path in (tmp_path / "c").glob("*.npz"))
    assert name.startswith("v.txt.")
    assert name.endswith(".npz")
    with np.load(tmp_path / "c" / name) as arrays:  # the found rows alone are stored
        assert arrays["vectors"].tolist() == [[7, 8, 9], [1, 2, 3], [1, 2, 3]]


def test_other_words_or_another_file_are_read_anew(vectors, tmp_path, scans):
    cache = tmp_path / "c"
    read(vectors, ["cat", "dog"], cache=cache)
    assert read(vectors, ["dog", "cat"], cache=cache)[0][0].tolist() == [-4.5, 0.5, 6]
    assert len(scans) == 2
    facts = vectors.stat()
    write(vectors, vectors.read_bytes().replace(b"cat 1", b"cat 9"))  # of the same size
    os.utime(vectors, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert read(vectors, ["cat", "dog"], cache=cache)[0][0].tolist() == [9, 2, 3]
    write(vectors, vectors.read_bytes() + b"e 1 1 1\n")
    os.utime(vectors, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    read(vectors, ["cat", "dog"], cache=cache)
    assert len(scans) == 4
    assert len(list(cache.glob("*.npz"))) == 2  # a stale one is replaced
    with pytest.raises(ValueError, match="--d_word is 2"):
        read(vectors, ["cat", "dog"], 2, cache=cache)


def test_a_damaged_cache_is_built_anew(vectors, tmp_path, scans):
    words, cache = ["cat", "dog"], tmp_path / "c"
    expected = read(vectors, words, cache=cache)[0].tolist()
    (path,) = cache.glob("*.npz")
    good = path.read_bytes()
    damaged = [b"", b"junk", good[: len(good) // 2], good[:-1]]
    for i in range(0, len(good), 7):  # one byte turned over
        damaged.append(good[:i] + bytes([good[i] ^ 255]) + good[i + 1 :])
    for content in damaged:
        path.write_bytes(content)
        assert read(vectors, words, cache=cache)[0].tolist() == expected
    rebuilt = len(scans)
    read(vectors, words, cache=cache)
    assert len(scans) == rebuilt > len(damaged) // 2
    for key, value in (("found", np.ones(3, bool)), ("vectors", np.ones((2, 3)))):  # other arrays
        with np.load(path) as arrays:
            content = dict(arrays) | {key: value}
        np.savez(path, **content)
        assert read(vectors, words, cache=cache)[0].tolist() == expected


def test_a_cache_that_cannot_be_written_stops_nothing(vectors, tmp_path, caplog):
    write(tmp_path / "c", "a file, not a folder")
    matrix, found = read(vectors, ["cat"], cache=tmp_path / "c")
    assert matrix.tolist() == [[1, 2, 3]]
    assert found.all()
    assert "cannot be cached" in caplog.text


def build(file, cache, barrier, queue):
    barrier.wait()
    results = [read(file, [f"w{i}" for i in range(0, 4000, 3)], 20, cache=cache) for _ in range(3)]
    queue.put([(matrix.sum(dtype=np.float64), found.sum()) for matrix, found in results])


def test_two_processes_that_build_at_once_agree(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"w{i} " + " ".join(f"{x:.4f}" for x in rng.normal(size=20)) for i in range(3000)]
    file = write(tmp_path / "v.txt", "\n".join(rows) + "\n")
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    arguments = (file, tmp_path / "c", barrier, queue)
    processes = [context.Process(target=build, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = queue.get(timeout=60) + queue.get(timeout=60)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(set(found)) == 1
    assert found[0][1] == 1000
    assert len(list((tmp_path / "c").glob("*.npz"))) == 1
