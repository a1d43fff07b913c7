"""The file of a night: HDF5 with an array per signal, its moments, and seals that show damage.

HDF5's own checksum covers the values of an array alone. A seal is the CRC-32 of all attributes
that stand with it; those of an array hold its moments and `content`, the CRC-32 of its values.
Nights of earlier versions have no seals: their moments are compared with the values instead.
"""

import io
import zlib

import h5py
import numpy as np

from files import write_atomically
from outside import h5_array

SEAL = "seal"  # names of attributes
CONTENT = "content"
ROUNDING = 1e-9  # relative, of 10⁷ float64 values that are added in another order


def sum_of(values, start=0):
    """Return the CRC-32 of an array's kind, shape and values, continued from `start`."""
    kind = zlib.crc32(f"{values.dtype} {values.shape}".encode(), start)
    return zlib.crc32(np.ascontiguousarray(values), kind)


def seal_of(attrs):
    """Return the seal of an object's attributes."""
    seal = 0
    for name in sorted({*attrs} - {SEAL}):
        seal = zlib.crc32(name.encode("utf-8", "surrogatepass"), seal)
        seal = zlib.crc32(np.asarray(attrs[name]).tobytes(), seal)
    return seal


def has_seal(attrs):
    """Return whether attributes have a seal, as all of this version do.

    Raises:
        ValueError: for the seal of other attributes.
    """
    if SEAL not in attrs:
        return False
    if attrs[SEAL] != seal_of(attrs):
        raise ValueError("its attributes are not those that were written")
    return True


def moments_of(values):
    """Return mean and mean square of each channel of an array [C, T], float64 [2, C]."""
    values = values.astype(np.float64)
    return np.stack([values.mean(axis=1), (values**2).mean(axis=1)])


def write_night(path, night, source, layout=""):
    """Write a night as HDF5: an array per signal with its moments, whole or not at all.

    Args:
        path: of the file.
        night: as `recordings.read_recording` returns it.
        source: as `edf_night.source_of` returns it.
        layout: flags of your own signals, as `own_signals.words_of` returns them.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs.update(source=source, lacking=night["lacking"], frames=len(night["stages"]))
        file.create_dataset("stages", data=night["stages"], fletcher32=True)
        if layout:
            file.attrs.update(layout=layout, units=night["units"])
        for name in [name for name in night if name not in ("stages", "lacking", "units")]:
            # Not compressed: noise hardly packs, and every training epoch reads every night. A
            # checksum lets damage be found when it is read.
            whole = {"chunks": night[name].shape, "fletcher32": True}
            array = file.create_dataset(name, data=night[name], **whole)
            mean, mean_square = moments_of(night[name])
            array.attrs.update(mean=mean, mean_square=mean_square)
            array.attrs[CONTENT] = sum_of(night[name])
            array.attrs[SEAL] = seal_of(array.attrs)
        file.attrs[SEAL] = seal_of(file.attrs)
    write_atomically(path, content.getvalue())


def read_facts(night, signals):
    """Return what a night's attributes tell, after a look at whether they can be.

    Args:
        night: open `h5py.File`.
        signals: their layout, as `own_signals.signals_of` returns it.

    Returns:
        The number of frames, `{signal: moments}` as `moments_of` returns them, and for each signal
        the CRC-32 of its values, −1 in a file without seals.

    Raises:
        ValueError: for arrays of another shape or kind, and attributes that are damaged.
    """
    frames = int(night.attrs["frames"])
    if frames < 1:
        raise ValueError("it has no frame")
    found = {}
    contents = []
    sealed = has_seal(night.attrs)
    for name, signal in signals.items():
        array = h5_array(night, name)
        if array.shape != (signal.channels, frames * signal.frame) or array.dtype.kind != "f":
            raise ValueError(f"{name} is {array.dtype} of the shape {array.shape}")
        if has_seal(array.attrs) != sealed:
            raise ValueError(f"the seal of {name} or of the file is gone")
        moments = np.stack([array.attrs["mean"], array.attrs["mean_square"]])
        if moments.shape != (2, signal.channels) or not np.isfinite(moments).all():
            raise ValueError(f"{name} is not finite")
        if (moments[1] < moments[0] ** 2 * (1 - ROUNDING)).any():
            raise ValueError(f"{name} has a mean square below the square of its mean")
        found[name] = moments
        contents.append(array.attrs[CONTENT] if sealed else -1)
    return frames, found, contents


def check_values(array, values):
    """Raise a ValueError unless an array's values are those that its attributes were made from.

    Args:
        array: `h5py.Dataset` of a signal, whose attributes `read_facts` took.
        values: what it holds, [C, T].
    """
    name = array.name.lstrip("/")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} is not finite")
    if CONTENT in array.attrs:
        same = array.attrs[CONTENT] == sum_of(values)
    else:
        moments = moments_of(values)
        noted = np.stack([array.attrs["mean"], array.attrs["mean_square"]])
        sizes = np.stack([np.sqrt(moments[1]), moments[1]])
        same = (np.abs(noted - moments) <= ROUNDING * sizes).all()
    if not same:
        raise ValueError(f"{name} has other values than its attributes tell")
