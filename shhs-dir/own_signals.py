"""Your own signals in place of a night's three: any channels of CSV, `.npy` or EDF files.

A CSV or `.npy` file holds an array [T, C], a row a sample, at --rate Hz; channels of an EDF file
are brought to that rate. The network sees the samples as they are, in frames of --window seconds.
"""

from collections import Counter

from edf_night import MICROVOLTS
from night_signals import FRAME_SECONDS, SIGNALS, Signal

MIN_MINUTES = 120.0  # of a night
LONGEST_SECONDS = 24 * 3600
LEAST_COLUMNS = 16  # of a frame: the network halves them twice


def add_signals(add):
    """Add the flags of your own signals; `add` adds a flag, as `add_argument` does."""
    channels_help = "your own signals: names of channels, with commas, in place of EEG, ECG, breath"
    add("--channels", default="", help=channels_help)
    add("--rate", type=float, help="their samples a second")
    window_help = f"seconds of a frame, of which a recording needs one [{FRAME_SECONDS}]"
    add("--window", type=float, help=window_help)


def check_signals(parser, args):
    """End with a message where the flags of the signals cannot be used."""
    if not args.channels:
        if args.rate or args.window:
            parser.error("--rate and --window belong to --channels, which names your own signals")
        return
    names = names_of(args)
    if not all(names) or len(set(names)) < len(names):
        parser.error(f"--channels needs different names with commas between, got {args.channels}")
    if args.rate is None or not 0 < args.rate < 1e6:
        parser.error(f"--channels needs --rate, samples a second below 1e6, got {args.rate}")
    if args.window is not None and not 0 < args.window <= LONGEST_SECONDS:
        parser.error(f"--window must be above 0, at most 24 hours, got {args.window:g}")
    (signal,) = signals_of(args).values()
    if signal.frame < LEAST_COLUMNS:
        parser.error(
            f"--window {signal.seconds:g} holds {signal.frame} samples at --rate {args.rate:g}, "
            f"it needs {LEAST_COLUMNS}: a longer one"
        )


def names_of(args):
    """Return the names of your own channels."""
    return tuple(name.strip() for name in args.channels.split(","))


def signals_of(args):
    """Return the layout of what the network sees, `{name: night_signals.Signal}`, by the flags."""
    if not args.channels:
        return SIGNALS
    names = names_of(args)
    seconds = args.window or float(FRAME_SECONDS)
    return {"own": Signal(len(names), args.rate, 0, names, seconds, "float32")}


def words_of(signals):
    """Return the flags that make a layout, '' for the benchmark's."""
    if "own" not in signals:
        return ""
    own = signals["own"]
    names = ",".join(own.channel_names)
    return f"--channels {names} --rate {own.columns:.9g} --window {own.seconds:.9g}"


def least_minutes(given, signals):
    """Return the shortest recording in minutes: what was given, a night's, or none of your own."""
    if given is not None:
        return given
    return MIN_MINUTES if "own" not in signals else 0.0


def layout_fault(made, signals):
    """Return what is wrong with a night that `prepare.py` made with other flags, or ''.

    Args:
        made: the attribute `layout` of its file, '' where it has none.
        signals: as `signals_of` returns them.
    """
    words = words_of(signals)
    if made == words:
        return ""
    return f"it was prepared with {made or 'no --channels'}, and here is {words or 'no --channels'}"


# ---- units ---------------------------------------------------------------------------------


def other_units(signals, stated, wanted):
    """Yield (row, name, unit, wanted unit) of each of your own channels that has another unit.

    Args:
        signals: as `signals_of` returns them.
        stated, wanted: units of the channels with commas between, '' where nothing states them.
    """
    names = signals["own"].channel_names if "own" in signals else ()
    for row, facts in enumerate(zip(names, stated.split(","), wanted.split(","))):
        _, *units = facts
        one, other = (MICROVOLTS.get(unit.lower(), unit.lower()) for unit in units)
        if all(units) and one != other:
            yield row, *facts


def with_common_units(results, signals):
    """Return (reason, detail) of each recording; one in other units than most gets a fault.

    Args:
        results: (reason, detail, units) of each.
        signals: as `signals_of` returns them.
    """
    stated = Counter(units for *_, units in results if units)
    most = max(stated, key=stated.get, default="")
    checked = []
    for reason, detail, units in results:
        if odd := [*other_units(signals, units, most)]:
            _, name, unit, other = odd[0]
            reason, detail = "unit", f"{name} is in {unit}, and in most recordings in {other}"
        checked.append((reason, detail))
    return checked


def convert(values, signals, stated, wanted):
    """Return a recording `{signal: [C, T]}` in the wanted units, as for `other_units`.

    Raises:
        ValueError: naming both units, where one is no volts.
    """
    for row, name, unit, other in other_units(signals, stated, wanted):
        factors = [MICROVOLTS.get(text.lower()) for text in (unit, other)]
        if None in factors:
            raise ValueError(f"{name} is in {unit}, and in training it was in {other}: convert it")
        values["own"][row] *= factors[0] / factors[1]
    return values
