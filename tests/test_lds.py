"""lds.py against closed forms and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import load

lds = load("agedb-dir", "lds")


def slow_convolution(values, window, mode):
    """Sum by sum; past the ends there is nothing ('constant') or a mirror ('reflect')."""
    half, last, out = len(window) // 2, len(values) - 1, []
    for b in range(len(values)):
        total = 0.0
        for offset in range(-half, half + 1):
            source = b + offset
            if mode == "reflect":  # SciPy's: the edge is repeated
                while not 0 <= source <= last:
                    source = -1 - source if source < 0 else 2 * last + 1 - source
            if 0 <= source <= last:
                total += window[offset + half] * values[source]
        out.append(total)
    return np.array(out)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 3000), min_size=4, max_size=30).filter(lambda c: any(c[2:])),
    reweight=st.sampled_from(["sqrt_inv", "inverse"]),
    mode=st.sampled_from(["constant", "reflect"]),
    start=st.sampled_from([0, 2]),
    clip=st.sampled_from([None, (5, 1000)]),
    truncate=st.booleans(),
)
def test_density_and_weights_by_hand(counts, reweight, mode, start, clip, truncate):
    density = lds.label_density(
        counts, reweight, True, "triang", 3, 1, clip=clip, mode=mode, start=start, truncate=truncate
    )
    values = np.array(counts, dtype=float)
    if reweight == "sqrt_inv":
        values = values**0.5
    elif clip:
        values = values.clip(*clip)
    values[:start] = next(value for value in values[start:] if value > 0)
    smoothed = slow_convolution(values[start:], [0.5, 1, 0.5], mode)  # halves are exact
    if truncate and reweight == "inverse":
        smoothed = np.array([int(value) for value in smoothed])
    first = next(value for value in smoothed if value > 0)
    smoothed = np.concatenate([np.full(start, first), smoothed])
    np.testing.assert_allclose(density[0], values)
    np.testing.assert_allclose(density[1], smoothed)
    weights = lds.bucket_weights(density, counts)
    samples = np.repeat(np.arange(len(counts)), counts)
    by_hand = 1 / smoothed[samples]
    np.testing.assert_allclose(weights[samples], by_hand / by_hand.mean(), rtol=1e-5)
    assert weights.dtype == np.float32
    filled = sorted(set(samples))
    for b in range(len(counts)):
        nearest = min(filled, key=lambda other, b=b: (abs(other - b), other))
        assert weights[b] == weights[nearest]


def test_sums_that_rounding_left_below_a_whole_number_are_not_cut():
    """Three tenths of 10 are 3, although 0.1 + 0.1 + 0.1 times 10 may fall short in floats."""
    cut = []
    for ks, sigma in ((3, 0.7), (5, 1.3), (9, 2.9)):
        window = lds.get_lds_kernel_window("gaussian", ks, sigma)
        for whole in range(1, 400):
            counts = np.zeros(ks)
            counts[ks // 2] = whole  # the window's peak is 1: the smoothed count is whole
            density = lds.label_density(
                counts, "inverse", True, "gaussian", ks, sigma, truncate=True
            )
            cut.append(density[1][ks // 2] == whole)
        assert window.max() == 1
    assert all(cut)
    almost = 15 - 1e-12
    density = lds.label_density([0, almost, 0], "inverse", True, "triang", 3, 1, truncate=True)
    assert density[1].tolist() == [7, 15, 7]


@pytest.mark.parametrize(("ks", "sigma"), [(3, 5), (21, 40), (5, 4.7), (27, 20)])
def test_a_window_wider_than_its_length_peaks_at_its_centre(ks, sigma):
    """Its reflected ends may lie above the centre: a lone sample would get the weight 1 / 0."""
    window = lds.get_lds_kernel_window("gaussian", ks, sigma)
    assert window[ks // 2] == window.max() == 1
    density = lds.label_density(
        [1] + [0] * ks, "inverse", True, "gaussian", ks, sigma, truncate=True
    )
    assert lds.bucket_weights(density, [1] + [0] * ks)[0] == 1
    if ks == 21:  # all but flat: two and three samples are within reach of each other
        counts = np.array([1, *[0] * 9, 1, *[0] * 9, 1])
        density = lds.label_density(counts, "inverse", True, "gaussian", ks, sigma, truncate=True)
        weights = lds.bucket_weights(density, counts)[counts > 0]
        np.testing.assert_allclose(weights, [1.125, 0.75, 1.125], rtol=1e-6)


def test_what_cannot_be_weighted_is_refused():
    with pytest.raises(ValueError, match="give --reweight"):
        lds.label_density([1, 2], "none", lds=True)
    with pytest.raises(ValueError, match="none, sqrt_inv, inverse"):
        lds.label_density([1, 2], "root")
    for wrong in ([1, -1], [1, float("nan")], [[1, 2]]):
        with pytest.raises(ValueError, match="finite and 0 or more"):
            lds.label_density(wrong, "inverse")
    with pytest.raises(ValueError, match="no bucket from 1 on"):
        lds.label_density([3, 0, 0], "inverse", start=1)
    with pytest.raises(ValueError, match="not finite"):
        lds.bucket_weights((np.array([1.0, 0.0]), None), [1, 1])
    assert lds.bucket_weights((np.array([4.0, 0.0]), None), [4, 0], "none").tolist() == [1, 1]


@pytest.mark.parametrize("ks", [1, 3, 5, 9, 101])
def test_triangle_is_scipys_to_the_digit(ks):
    windows = pytest.importorskip("scipy.signal.windows")
    assert (lds.get_lds_kernel_window("triang", ks, 1) == windows.triang(ks)).all()
