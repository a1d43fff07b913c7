"""Similarities of new pairs of sentences by a trained model; no scores are needed.

    python predict.py --model checkpoint/RUN pairs.tsv --out predictions.csv

A table has the columns sentence1 and sentence2, by tabs (.tsv) or commas (.csv). In Python:
`predict.load("checkpoint/RUN").predict([("A cat sleeps.", "A dog runs.")])`, a table.
"""

import new_inputs
import program

SUFFIXES = (".tsv", ".csv")


def parse_args(argv=None):
    """Parse the command line."""
    inputs = "tables of pairs, folders of them, or patterns"
    parser = new_inputs.make_parser(__doc__, inputs, 128)
    encoder_help = "the Hugging Face encoder with which the model was trained, if you trust it"
    parser.add_argument("--encoder", default="", help=encoder_help)
    return new_inputs.parse_args(parser, argv)


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below, which take seconds

import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import text
import train
from criterion import columns_of, in_unit
from datasets import tokenize
from outside import shown
from pair_file import check_once, columns_differ, from_unit, read_rows, some_of

COLUMNS = ["sentence1", "sentence2"]
EMPTY = "it has an empty sentence"


class Predictor:
    """A trained model that takes new pairs.

    Args:
        name: run folder, file of a checkpoint with `vocab.txt` next to it, or OWNER/NAME on the
            Hugging Face Hub.
        device: 'auto', 'cpu', 'cuda' or 'mps'.
        encoder: the flag --encoder of its training.

    Raises:
        FileNotFoundError, ValueError: without such a checkpoint, or without its words.
    """

    def __init__(self, name, device="auto", encoder=""):
        given = ["--encoder", encoder] if encoder else []
        path, checkpoint, self.args = new_inputs.find_model(train, name, given)
        if not checkpoint.get("config"):  # as with the released ones
            taken = "%s names no flags, nor does a results.json next to it: taken as %s from 0 to 5"
            logging.warning(taken, path, "STS-B's similarity")
        state = train.utils.weights_of(checkpoint, path)
        self.words = self.tokenizer = None
        padding = 0
        if self.args.encoder:
            self.tokenizer = text.load_pretrained("AutoTokenizer", self.args.encoder)
            padding = self.tokenizer.pad_token_id or 0
        else:
            self.words = text.read_vocabulary(Path(path).with_name(text.VOCABULARY))
            text.check_rows(state, self.words, path)
        self.corpus = text.Corpus(None, None, self.words, padding)
        self.device = new_inputs.device_of(device)
        model = train.build_model(self.args, self.corpus)
        train.utils.load_state(model, state, path)
        self.model = model.to(self.device).eval()

    def predict(self, pairs, batch_size=128, quiet=True):
        """Predict pairs.

        Args:
            pairs: list of (first sentence, second sentence), strings.
            batch_size, quiet: pairs of a batch; show no progress bar.

        Returns:
            DataFrame of sentence1, sentence2 and prediction, in the scores' unit, and of experts
            `std`. Pairs without words are not in it: its `attrs["faults"]` is a list of (pair,
            error).

        Raises:
            ValueError: naming what is no such pair.
        """
        pairs = list(pairs)
        for pair in pairs:
            parts = [] if isinstance(pair, str) or not np.iterable(pair) else pair
            if [isinstance(part, str) for part in parts] != [True, True]:
                raise ValueError(f"a pair is (sentence, sentence), both strings; got {pair!r}")
        given = pairs, self.read, self.answer, batch_size, quiet
        rows, answers, faults = new_inputs.read_and_answer(*given)
        table = pd.DataFrame([pairs[row] for row in rows], columns=COLUMNS)
        table = table.assign(**columns_of(answers))
        table.attrs[new_inputs.FAULTS] = faults
        return table

    def read(self, pair):
        """Return the ids of both sentences of a pair, two lists."""
        first, second = pair
        if not (first.strip() and second.strip()):
            raise ValueError(EMPTY)
        limit = self.args.max_seq_len
        if self.tokenizer is not None:
            options = {"truncation": True, "max_length": limit}
            return self.tokenizer([first, second], **options)["input_ids"]
        tokens = [sentence[:limit] for sentence in tokenize(pair, self.args.tokenizer)]
        return text.words_to_ids(tokens, self.words)

    @torch.inference_mode()
    def answer(self, pairs):
        """Return the answers to such pairs, [n, 1] or [n, 2]: 0 to 5, or your own target."""
        sentences = [ids for side in (0, 1) for ids in (pair[side] for pair in pairs)]
        lengths = [len(ids) for ids in sentences]
        padded = np.full((len(sentences), max(lengths)), self.corpus.padding, dtype=np.int64)
        for row, ids in zip(padded, sentences):
            row[: len(ids)] = ids
        answers = self.model(torch.from_numpy(padded).to(self.device), lengths)[0]
        answers = answers.cpu().double().numpy()
        target = train.TARGET.of(self.args)
        return in_unit(answers, lambda values: from_unit(values, target)).tolist()


load = Predictor


def read_pairs(file):
    """Return {line: pair} of a table; a ValueError says what cannot be used in it."""
    header, rows = read_rows(file)
    if missing := [column for column in COLUMNS if column not in header]:
        found = ", ".join(map(repr, header))
        raise ValueError(f"it lacks the column {' and '.join(missing)}: it has {shown(found)}")
    check_once(file, header, COLUMNS)
    rows = [(number, fields) for number, fields in rows if fields != [""]]
    if faults := columns_differ(header, rows):
        raise ValueError(f"{some_of(faults)}: correct or remove these rows")
    places = [header.index(column) for column in COLUMNS]
    return {number: tuple(fields[place] for place in places) for number, fields in rows}


def main(argv=None):
    """Write the predictions; returns the exit status, 1 if an input could not be used."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    model = load(args.model, args.device, args.encoder)
    pairs = []
    unreadable = []
    for file in new_inputs.files_of(args.inputs, SUFFIXES):
        try:
            found = read_pairs(file)
        except (ValueError, OSError) as error:
            unreadable.append((file, error))
            continue
        for line, pair in found.items():
            if all(sentence.strip() for sentence in pair):
                pairs.append(pair)
            else:
                unreadable.append((f"{file}, line {line}", EMPTY))
    table = model.predict(pairs, args.batch_size, quiet=False)
    table.attrs[new_inputs.FAULTS] += unreadable
    return new_inputs.finish(table, args.out)


if __name__ == "__main__":
    program.run(main)
