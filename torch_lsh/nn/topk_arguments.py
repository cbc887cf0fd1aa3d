"""The arguments of an approximate top-k."""

from __future__ import annotations


def check_topk(k: int, out_features: int, candidates: int | None, recall: float) -> None:
    """Checks the arguments of :meth:`torch_lsh.LSHLinear.topk`.

    Raises:
        TypeError: a number has another type.
        ValueError: it is out of range.
    """
    for name, number in (("k", k), ("candidates", candidates)):
        if not (hasattr(number, "__index__") or (number is None and name == "candidates")):
            raise TypeError(f"{name} is {number!r}; wanted an int")
    if not 1 <= k <= out_features:
        raise ValueError(f"k is {k}; wanted 1 to {out_features}")
    if candidates is not None and candidates < k:
        raise ValueError(f"candidates is {candidates}; wanted at least k, which is {k}")
    if not isinstance(recall, (int, float)) or isinstance(recall, bool):
        raise TypeError(f"recall is {recall!r}; wanted a float")
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}; wanted over 0, at most 1")
