"""Which method helps on a table: several trained with several seeds, one table, one figure.

Called by `train.py --compare`. A method is taken only if its validation error is lower than plain
training's by more than chance explains; the test set is reported and decides nothing.
"""


def compare(args, run_name, train):
    """To come."""
    raise ValueError("--compare is not there yet")
