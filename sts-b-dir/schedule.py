"""When a run validates and when it stops, both counted in steps and validations."""


def out_of_patience(history, patience):
    """Whether training stops: the latest validation loss is no lower than any of the last ones.

    Source: the released code, which compares with the last patience + 1 losses, the latest among
    them, once there are patience + 2; how old the best one is does not count.
    """
    return len(history) >= patience + 2 and history[-1] >= max(history[-(patience + 1) :])


def spans_to_validation(first, per_epoch, interval):
    """Return the steps from `first` to the next validation as ranges, each within one epoch."""
    last = (first // interval + 1) * interval
    starts = [first, *range((first // per_epoch + 1) * per_epoch, last, per_epoch)]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], last])]
