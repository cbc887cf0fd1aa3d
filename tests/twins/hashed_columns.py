from __future__ import annotations

import torch
from torch import Tensor


def count_columns_(counts: Tensor, crow: Tensor, col: Tensor, labels: Tensor, feature_of: Tensor | None = None) -> None:
    for label, begin, end in zip(labels.tolist(), crow.tolist(), crow[1:].tolist()):
        for column in col[begin:end].tolist():
            feature = column if feature_of is None else int(feature_of[column])
            if feature >= 0:
                counts[label, feature] += 1


def weigh_columns(
    crow: Tensor, col: Tensor, values: Tensor, feature_of: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    starts, features, weighted = [0], [col[:0]], [values[:0]]
    for begin, end in zip(crow.tolist(), crow[1:].tolist()):
        of_row = feature_of[col[begin:end].long()]
        known = of_row >= 0
        row = values[begin:end][known] * weights[of_row[known].long()]
        features.append(of_row[known].to(col.dtype))
        weighted.append(row / row.double().norm().clamp(min=1e-12).float())
        starts.append(starts[-1] + len(row))
    return torch.tensor(starts), torch.cat(features), torch.cat(weighted)
