"""From the files of sentence pairs to ids, words and word vectors, for `train.py`.

A checkpoint of the LSTM holds rows of an embedding, not words, so one differing word would shift
all ids behind it. Ours have `vocab.txt` next to them, which is used; for others the vocabulary is
built again from the data, and another number of rows is an error.
"""

import logging
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from criterion import columns_of
from datasets import tokenize
from embeddings import read_word_vectors
from files import write_atomically
from outside import reading
from pair_file import FILES, SIMILARITY, read_pairs

VOCABULARY = "vocab.txt"  # in the run folder: line i is the word of id i
PADDING, UNKNOWN = "@@PADDING@@", "@@UNKNOWN@@"  # ids 0 and 1 (released code)
WORDS = "pair_encoder._text_field_embedder.token_embedder_words.weight"  # name in checkpoints


# ---- words and ids -------------------------------------------------------------------------


def build_vocabulary(pairs, tokens, max_words):
    """Return the words by id: padding, unknown, then words by descending count.

    Words of one count stand in the order in which they appear: the first sentences of all rows of
    the training set, its second ones, then validation and test set alike.

    Args:
        pairs: what `pair_file.read_pairs` returns.
        tokens: words of the first and of the second sentences, two lists in the rows' order.
        max_words: how many words get an id of their own.
    """
    counts = Counter()
    for split in FILES:
        rows = np.flatnonzero(pairs["split"] == split)
        for sentences in tokens:
            counts.update(chain.from_iterable(sentences[row] for row in rows))
    return [PADDING, UNKNOWN, *(word for word, _ in counts.most_common(max_words))]


def words_to_ids(tokens, words):
    """Return each sentence's ids as a list; a word that `words` lacks is unknown."""
    number = {word: i for i, word in enumerate(words)}
    unknown = number[UNKNOWN]
    return [[number.get(word, unknown) for word in sentence] for sentence in tokens]


def read_vocabulary(path):
    """Return the words by id that a run has left in `vocab.txt`.

    Raises:
        ValueError: if the file is none, or repeats a word.
    """
    with reading(path, "restore it, or remove it and give the run's flags"):
        words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if words[:2] != [PADDING, UNKNOWN] or len(set(words)) < len(words):
            raise ValueError(f"it starts with {words[:2]} or repeats a word")
    return words


def write_vocabulary(run, words):
    """Write `vocab.txt` into the run folder; nothing where there are none, with --encoder."""
    if run.is_main and words:
        lines = "".join(f"{word}\n" for word in words)
        write_atomically(run.folder / VOCABULARY, lines.encode())


class Corpus(NamedTuple):
    """All pairs as ids."""

    pairs: pd.DataFrame  # what `pair_file.read_pairs` returns
    ids: list  # two lists, of the first and of the second sentences: a list of ids for each row
    words: list | None  # word of each id; None with --encoder
    padding: int  # id behind a sentence's end


def read_corpus(args, checkpoint=None, needed=tuple(FILES)):
    """Read the pairs and turn words into ids.

    Args:
        args: of train.py.
        checkpoint: path whose neighbour `vocab.txt`, if it exists, says the words; or None.
        needed: splits whose file must exist.

    Raises:
        FileNotFoundError, ValueError: as `pair_file.read_pairs`, and for an unusable vocabulary or
            encoder.
    """
    pairs = read_pairs(args.data_dir, SIMILARITY.of(args), needed)
    columns = [pairs[name].tolist() for name in ("sentence1", "sentence2")]
    if args.encoder:
        tokenizer = load_pretrained("AutoTokenizer", args.encoder)
        options = {"truncation": True, "max_length": args.max_seq_len}
        ids = [tokenizer(sentences, **options)["input_ids"] for sentences in columns]
        return Corpus(pairs, ids, None, tokenizer.pad_token_id or 0)
    tokens = [tokenize(sentences, args.tokenizer) for sentences in columns]
    tokens = [[sentence[: args.max_seq_len] for sentence in part] for part in tokens]
    file = Path(checkpoint).with_name(VOCABULARY) if checkpoint else None
    if file is not None and file.is_file():
        words, source = read_vocabulary(file), file
    else:
        words = build_vocabulary(pairs, tokens, args.max_word_v_size)
        source = "from the three files"
    ids = [words_to_ids(part, words) for part in tokens]
    logging.info("Vocabulary of %d words (%s)", len(words) - 2, source)
    logging.info(
        "Tokenizer %s of NLTK %s: %d of %d tokens unknown",
        args.tokenizer,
        version("nltk"),
        sum(sentence.count(1) for sentence in chain(*ids)),
        sum(map(len, chain(*ids))),
    )
    return Corpus(pairs, ids, words, padding=0)


def inputs_of(args, corpus):
    """Return what tells the ids from others, for `run_folder.Run.note_data`.

    They follow from the sentences, the flags, `vocab.txt` and NLTK, or the encoder's tokenizer.
    Word vectors do not count: a resumed run has those of its checkpoint.
    """
    flags = args.tokenizer, args.max_seq_len, args.max_word_v_size, args.encoder
    return {f"token ids, {flags}": list(chain.from_iterable(chain(*corpus.ids)))}


def split_rows(corpus):
    """Return {split: (two lists of ids, labels [N])} of a `Corpus`."""
    splits = corpus.pairs["split"]
    labels = corpus.pairs["label"].to_numpy()
    parts = {}
    for split in FILES:
        rows = np.flatnonzero(splits == split)
        parts[split] = [[sentences[row] for row in rows] for sentences in corpus.ids], labels[rows]
    return parts


# ---- word vectors and checkpoints ----------------------------------------------------------


def word_vectors(args, corpus):
    """Return the embedding to start from, float32 [V, d_word], and log how much of it is known.

    Words that the file lacks, and the unknown word, are drawn from N(0, 1); padding is zero.
    """
    words = corpus.words
    vectors = np.random.default_rng(args.seed).standard_normal((len(words), args.d_word))
    vectors = vectors.astype(np.float32)
    vectors[0] = 0
    if not args.glove:
        return vectors
    cache = None
    if args.cache != "none":
        cache = Path(args.cache or Path(args.data_dir) / "cache")
    file = args.word_embs_file
    known, found = read_word_vectors(file, words[2:], args.d_word, cache)
    vectors[2:][found] = known[found]
    counts = np.bincount(list(chain.from_iterable(chain(*corpus.ids))), minlength=len(words))
    share = 100 * counts[2:][found].sum() / counts.sum()
    logging.info(
        "%s has %d of %d words, %.1f %% of all tokens", file, sum(found), len(found), share
    )
    return vectors


def vectors_of(args, corpus):
    """Return the vectors of all ids from which training starts, float32 [V, d_word]."""
    if args.encoder:
        return load_encoder(args.encoder, True).get_input_embeddings().weight.detach().numpy()
    return word_vectors(args, corpus)


def check_rows(state_dict, words, path):
    """Raise ValueError if a checkpoint's embedding has another number of rows than words."""
    weight = state_dict.get(WORDS, state_dict.get(f"module.{WORDS}"))
    if weight is not None and words is not None and len(weight) != len(words):
        raise ValueError(
            f"{path} holds vectors of {len(weight)} words, the vocabulary here has {len(words)}. A "
            "checkpoint stores rows, not words: put the vocab.txt of its run next to it, or give "
            "--data_dir, --max_seq_len, --max_word_v_size and --tokenizer as in that run (official "
            f"checkpoints: --tokenizer punkt, NLTK 3.6 or older; this is NLTK {version('nltk')})"
        )


def find_encoder(name):
    """Return the folder `model` of an installed package of that name, else the name."""
    package = name.replace("-", "_")
    if Path(name).is_dir() or not package.isidentifier():
        return name
    found = find_spec(package)
    folders = found.submodule_search_locations if found else None
    folder = Path(folders[0], "model") if folders else Path(name)
    return folder if (folder / "config.json").is_file() else name


def load_pretrained(kind, name):
    """Load a tokenizer, configuration or model of Hugging Face by its name, path or package."""
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(
            find_encoder(name), trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--encoder {name} cannot be loaded ({kind}): give the name of a text encoder on the "
            f"Hugging Face hub, or a folder with its files ({error})"
        ) from error


def load_encoder(name, fresh):
    """Return a Hugging Face encoder in float32; only a fresh one reads its weights."""
    from transformers import AutoModel

    if fresh:
        encoder = load_pretrained("AutoModel", name).float()
    else:
        config = load_pretrained("AutoConfig", name)
        encoder = AutoModel.from_config(config, trust_remote_code=False).float()
    # What makes one vector of a text is not used; without gradient, processes need not agree on it.
    for part, module in encoder.named_children():
        if part == "pooler" and module is not None:
            module.requires_grad_(False)
    return encoder


def table_of(pairs, predictions):
    """Return the table of `predictions.csv`: both sentences, label, prediction (0 ... 5), split.

    Args:
        pairs: what `pair_file.read_pairs` returns.
        predictions: {split: array [N, 1] in the rows' order, or [N, 2] with a deviation, `std`}.
    """
    tables = [
        pairs[pairs["split"] == split].assign(**columns_of(answers))
        for split, answers in predictions.items()
    ]
    answers = [name for name in ("prediction", "std") if name in tables[0]]
    columns = ["sentence1", "sentence2", "label", *answers, "split"]
    return pd.concat(tables)[columns]
