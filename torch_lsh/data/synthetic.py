"""Generated data with the sizes of Amazon-670K and learnable structure."""

from __future__ import annotations

import numpy as np
import torch

from .xmc import XMCDataset, XMCRows, join_rows

_CLUSTER = 8  # labels that share features
_CLUSTER_FEATURES, _LABEL_FEATURES = 20, 24
_NOISE_FEATURES = 20
_BLOCK_ROWS = 10_000  # drawn at a time: bounds the memory


def _uniform(*keys: np.ndarray | int) -> np.ndarray:
    """Numbers in [0, 1) that are a function of the keys (splitmix64), so that no table of all labels is needed."""
    bits = np.uint64(0)
    with np.errstate(over="ignore"):
        for key in keys:
            bits = (bits ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            bits = bits ^ (bits >> np.uint64(31))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _power_law(uniform: np.ndarray, size: int, exponent: float) -> np.ndarray:
    """Ranks 0 .. size - 1 with probability close to ``(rank + 1) ** -exponent``, by inversion."""
    power = 1 - exponent
    rank = (uniform * ((size + 1) ** power - 1) + 1) ** (1 / power) - 1
    return np.minimum(rank.astype(np.int64), size - 1)


def synthetic_xmc(
    num_train: int = 50_000,
    num_test: int = 5_000,
    num_features: int = 135_909,
    num_labels: int = 670_091,
    seed: int = 0,
) -> tuple[XMCDataset, XMCDataset]:
    """Training and test rows with about 5 labels and 75 features each.

    Labels come in clusters of eight. Every cluster has 20 features and every label 24; a row draws a label from a power
    law, some other labels of its cluster, some of the features of each, and 20 features of noise. The popularity of
    features follows a power law too. Values are Gamma distributed and normalised to length 1. The same arguments give
    the same rows; training and test rows share labels and features, and the test rows do not depend on ``num_train``.

    Args:
        num_train, num_test: rows of the two sets.
        num_features, num_labels: default: those of Amazon-670K.
        seed: of everything.

    Raises:
        ValueError: a size is negative, or there are no features or labels.

    >>> train, test = synthetic_xmc(100, 10, num_features=1_000, num_labels=5_000)
    >>> train
    XMCDataset(100 rows, 1,000 features, 5,000 labels)
    """
    for name, value in (("num_train", num_train), ("num_test", num_test)):
        if value < 0:
            raise ValueError(f"{name} is {value}; wanted 0 or more")
    for name, value in (("num_features", num_features), ("num_labels", num_labels)):
        if value < 1:
            raise ValueError(f"{name} is {value}; wanted at least 1")
    rng = np.random.default_rng([seed, 0])
    feature_order, label_order = rng.permutation(num_features), rng.permutation(num_labels)

    def draw(split: int, rows: int) -> XMCDataset:
        starts = range(0, max(1, rows), _BLOCK_ROWS)
        blocks = [
            _draw(
                np.random.default_rng([seed, split, i]),
                min(_BLOCK_ROWS, rows - start),
                seed,
                feature_order,
                label_order,
            )
            for i, start in enumerate(starts)
        ]
        return XMCDataset.from_rows(join_rows(blocks))

    return draw(1, num_train), draw(2, num_test)


def _draw(
    rng: np.random.Generator, rows: int, seed: int, feature_order: np.ndarray, label_order: np.ndarray
) -> XMCRows:
    num_features, num_labels = len(feature_order), len(label_order)
    primary = label_order[_power_law(rng.random(rows), num_labels, 0.75)]
    cluster = primary // _CLUSTER
    siblings = cluster[:, None] * _CLUSTER + np.arange(_CLUSTER)
    order = rng.random(siblings.shape)
    order[siblings == primary[:, None]] = -1.0  # the drawn label comes first
    order[siblings >= num_labels] = 2.0  # the last cluster may be smaller
    siblings = np.take_along_axis(siblings, order.argsort(1), 1)
    sizes = np.minimum(num_labels - cluster * _CLUSTER, _CLUSTER)
    wanted = np.minimum(1 + rng.poisson(4.45, rows), sizes)
    chosen = np.arange(_CLUSTER) < wanted[:, None]

    row, slot = np.nonzero(chosen)
    label = siblings[row, slot]
    # A window of the label's features that begins anywhere, wide enough for some 45 features of labels in all.
    width = np.maximum(3, np.minimum(45 // wanted, _LABEL_FEATURES))[row]
    window = np.arange(_LABEL_FEATURES)
    place = (rng.integers(0, _LABEL_FEATURES, len(row))[:, None] + window) % _LABEL_FEATURES
    use = window < width[:, None]
    of_labels = _power_law(_uniform(seed, 1, label[:, None], place)[use], num_features, 0.6)
    label_row = np.broadcast_to(row[:, None], use.shape)[use]

    half = np.arange(_CLUSTER_FEATURES // 2)
    place = (rng.integers(0, _CLUSTER_FEATURES, rows)[:, None] + half) % _CLUSTER_FEATURES
    of_cluster = _power_law(_uniform(seed, 2, cluster[:, None], place), num_features, 0.6)
    noise = _power_law(rng.random((rows, _NOISE_FEATURES)), num_features, 0.6)

    all_rows = np.concatenate(
        [label_row, np.repeat(np.arange(rows), len(half)), np.repeat(np.arange(rows), _NOISE_FEATURES)]
    )
    all_features = feature_order[np.concatenate([of_labels, of_cluster.ravel(), noise.ravel()])]
    row, feature = np.divmod(np.unique(all_rows * num_features + all_features), num_features)
    values = (rng.gamma(2.0, 0.5, len(row)) + 0.1).astype(np.float32)
    values /= np.sqrt(np.bincount(row, values.astype(np.float64) ** 2, rows))[row].astype(np.float32)

    label_ids = np.sort(np.where(chosen, siblings, num_labels), 1)
    return XMCRows(
        _starts(np.bincount(row, minlength=rows)),
        torch.from_numpy(feature.astype(np.int32)),
        torch.from_numpy(values),
        _starts(wanted),
        torch.from_numpy(label_ids[label_ids < num_labels].astype(np.int32)),
        num_features,
        num_labels,
    )


def _starts(counts: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
