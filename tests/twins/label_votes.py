from __future__ import annotations

import torch
from torch import Tensor


def label_votes(
    rows: Tensor, weights: Tensor, label_start: Tensor, labels: Tensor, num_labels: int, keep: int, also: Tensor
) -> tuple[Tensor, Tensor]:
    found = torch.full((len(rows), keep + also.shape[1]), -1)
    votes = torch.zeros(*found.shape, weights.shape[2])
    for i in range(len(rows)):
        sums: dict[int, Tensor] = {}
        for row, some in zip(rows[i].tolist(), weights[i]):
            if row >= 0:
                for label in labels[int(label_start[row]) : int(label_start[row + 1])].tolist():
                    sums[label] = sums.get(label, torch.zeros(weights.shape[2])) + some
        best = sorted(sums, key=lambda label: (-float(sums[label][0]), label))[:keep]
        listed = dict.fromkeys(best + [label for label in also[i].tolist() if label >= 0])
        for j, label in enumerate(listed):
            found[i, j] = label
            votes[i, j] = sums.get(label, torch.zeros(weights.shape[2]))
    return found, votes
