from __future__ import annotations

import torch
from torch import Tensor


def parse_xmc(text: Tensor, num_features: int, num_labels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str]:
    """Of well-formed lines only: what is malformed, and how it is reported, is defined by the operator."""
    feature_counts, features, values, label_counts, labels = [], [], [], [], []
    for line in bytes(text.tolist()).decode().removesuffix("\n").split("\n") if len(text) else []:
        words = line.split()
        has_labels = len(words) > 0 and line[0] not in " \t\r" and ":" not in words[0]
        of_row = [int(label) for label in words.pop(0).split(",")] if has_labels else []
        labels += of_row
        label_counts.append(len(of_row))
        feature_counts.append(len(words))
        for word in words:
            feature, value = word.split(":")
            features.append(int(feature))
            values.append(float(value))
    return (
        torch.tensor(feature_counts, dtype=torch.int64),
        torch.tensor(features, dtype=torch.int32),
        torch.tensor(values, dtype=torch.float32),
        torch.tensor(label_counts, dtype=torch.int64),
        torch.tensor(labels, dtype=torch.int32),
        "",
    )
