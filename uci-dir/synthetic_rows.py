"""SMOTER and SMOGN on the rows of a table; `resample.py` holds what does not depend on tables."""

import numpy as np

from columns import NUMBER
from resample import draw


def distance_of(inputs, columns):
    """Return what makes Euclid's distance between rows one of mixed columns (HEOM).

    A number counts by its difference over the range of the training rows, a category as 0 if both
    rows have it and as 1 if not, and so does the mark of a missing cell.

    Args:
        inputs: encoded training rows, float32 [N, D].
        columns: as `columns.fit_columns` returns them.

    Returns:
        What each input is divided by, float [D], and the number of its category, -1 for numbers,
        long [D].

    Source: Wilson and Martinez, "Improved Heterogeneous Distance Functions" (JAIR 6, 1997).
    """
    scale = np.ones(inputs.shape[1])
    categories = np.full(inputs.shape[1], -1)
    start = 0
    for column in columns:
        if column["kind"] == NUMBER:
            scale[start] = np.ptp(inputs[:, start]) or 1.0
            start += 1
            width = int(column["flag"])
        else:
            width = len(column["values"]) + column["other"]
            scale[start : start + width] = np.sqrt(2)  # two categories differ in two inputs
        if width:
            categories[start : start + width] = categories.max() + 1
        start += width
    return scale, categories


def with_synthetic_rows(inputs, labels, shots, args):
    """Return inputs and labels of training: the rows that stay, and behind them synthetic ones.

    Args:
        inputs, labels: of the training rows, float32 [N, D] and float64 [N].
        shots: shot of each row [N].
        args: the flags, with the table's preparation.
    """
    scale, categories = distance_of(inputs, args.preparation["columns"])
    synthetic, stay = draw(labels, shots, lambda rows: inputs[rows] / scale, args, categories)
    parents = inputs[synthetic.seeds], inputs[synthetic.partners]
    numbers = np.arange(len(synthetic.labels))
    deviations = synthetic.deviations * scale
    made = synthetic.make(numbers, *parents, deviations, args.seed)
    inputs = np.concatenate([inputs[stay], made]).astype(np.float32)
    return inputs, np.concatenate([labels[stay], synthetic.labels])
