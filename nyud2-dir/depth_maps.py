"""Sizes, units and buckets of depth maps; without torch, so that `prepare.py` starts fast."""

import numpy as np

from target import Target

# The released code's.
SIZE = (240, 320)  # height and width to which every picture is scaled
CROP = (228, 304)  # of that
TRAIN_UNIT = 10.0 / 255.0  # metres a step of an 8-bit training depth
TEST_UNIT = 0.001  # metres a step of a 16-bit test depth
BUCKETS = 100  # of 0.1 m
BUCKET_START = 7  # the nearest training pixel's
# Shots in per cent of an even share of the training pixels: between the lists of the released code.
DEPTH = Target("depth", "m", 0.0, 10.0, 0.1, many=70, few=30, span=10.0)


def crop_of(images, downscale=1):
    """Return top, left, height and width of the central crop of images [n, H, W, ...]."""
    height, width = (side // downscale for side in CROP)
    return (images.shape[1] - height) // 2, (images.shape[2] - width) // 2, height, width


def buckets_of(target):
    """Return the `label_to_bucket` of a `Target`."""
    return target.buckets if target.own else label_to_bucket


def edges_of(target):
    """Return the lower edges of a target's buckets [B]."""
    return target.edges if target.own else np.arange(BUCKETS) / 10


def middles_of(target):
    """Return the middles of a target's buckets [B]."""
    return target.middles if target.own else np.arange(BUCKETS) / 10 + 0.05


def known(labels, mask, target):
    """Return which pixels have a label and count, bool: a depth above 0, or your own mask."""
    if target.own:
        return labels.isfinite() if mask is None else mask
    return labels > 0 if mask is None else (labels > 0) & mask


def label_to_bucket(labels):
    """Return the bucket min(int(10·depth), 99) of each depth, as long, same shape and kind."""
    # In float32, as the buckets are defined.
    if hasattr(labels, "clamp"):  # a tensor
        return (labels.float() * 10).long().clamp_(max=BUCKETS - 1)
    tenths = np.asarray(labels).astype(np.float32) * np.float32(10)
    return np.minimum(tenths.astype(np.int64), BUCKETS - 1)
