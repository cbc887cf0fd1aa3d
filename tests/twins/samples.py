"""Sample arguments of every operator: one list for all tests that run over all operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torch_lsh import ops

from .partition import update_partition
from .tables import build_tables


class Sample(NamedTuple):
    """One call of an operator."""

    arguments: tuple[Any, ...]
    #: Whether the operator has a result for tensors without data.
    has_fake: bool = True
    #: Whether there is a plain-PyTorch twin that returns the same, thus draws no random numbers of its own.
    has_twin: bool = True


def _words(text: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).clone()


def _int32(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def _score_text() -> list[Sample]:
    texts = _words(b"to be, or not"), torch.tensor([0, 5, 5, 13])
    settings = 6, 2, 3, 4, True, "log", 7, True, True
    return [Sample((*texts, *settings, torch.rand(64, 1 + n), torch.randn(n))) for n in (1, 3)]


def _csr() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([0, 2, 2, 3]), torch.tensor([1, 4, 4])


def _gather_rows() -> list[Sample]:
    rows = torch.tensor([1, 9])
    return [
        Sample((_randn(10, 3), rows, None)),
        Sample((_randn(10), rows, torch.bfloat16)),
    ]


def _product() -> list[Sample]:
    a, b = _randn(5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64).T
    return [Sample((a, b, None)), Sample((a, b, _randn(5, dtype=torch.float64)))]


def _sampled_dot() -> list[Sample]:
    rows = torch.tensor([[0, 3], [9, -1]])
    return [
        Sample((_randn(2, 3), _randn(10, 3), rows)),
        Sample((torch.randn(2, 3).bfloat16(), torch.randn(10, 3).bfloat16(), rows)),
    ]


def _embedding_bag() -> list[Sample]:
    return [
        Sample((_randn(6, 3), *_csr(), _randn(3))),
        Sample((_randn(6, 3), *_csr(), None)),
    ]


def _optimizer_step(*states: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    return torch.randn(9, 4), *states, torch.tensor([1, 5]), torch.randn(2, 4)


def _row_sparse_adam() -> list[Sample]:
    moments = torch.zeros(9, 4), torch.zeros(9, 4)
    numbers = (0.1, 0.9, 0.99, 1e-8, 0.01, 0.1, 0.01)
    decays = torch.rand(2, 3, dtype=torch.float64)
    return [
        Sample((*_optimizer_step(*moments), None, *numbers, False, False)),
        Sample((*_optimizer_step(*moments), decays, *numbers, True, True, torch.randn(4, 4), 3)),
    ]


def _row_sparse_sgd() -> list[Sample]:
    return [
        Sample((*_optimizer_step(None), 0.1, 0.0, 0.0, 0.0, False, False)),
        Sample((*_optimizer_step(torch.zeros(9, 4)), 0.1, 0.9, 0.1, 0.01, True, True)),
    ]


def _row_sparse_adagrad() -> list[Sample]:
    return [Sample((*_optimizer_step(torch.ones(9, 4)), 0.1, 1e-8, 0.01, False))]


def _row_sparse_lion() -> list[Sample]:
    return [Sample((*_optimizer_step(torch.ones(9, 4)), 0.1, 0.9, 0.99, 0.01, False))]


def _select_rows() -> list[Sample]:
    labels, candidates = torch.tensor([[1], [-1]]), torch.tensor([[4, 2, 7], [1, -1, 8]])
    return [
        Sample((labels, candidates, 20, 4, 0, 0, False, torch.tensor([19, 3]))),
        Sample((labels, candidates, 20, 4, 0, 0, True)),
        Sample((labels, candidates, 20, 8, 2, 0, False), has_twin=False),
    ]


def _draw_rows() -> list[Sample]:
    cumulative = torch.cat([torch.zeros(1), torch.arange(20.0, 0, -1)]).double().cumsum(0)
    labels = torch.tensor([[1], [-1]])
    return [
        Sample((labels, None, cumulative, 6, 0, False)),
        Sample((labels, torch.randperm(20), cumulative, 6, 0, True)),
    ]


def _draw_hashed_rows() -> list[Sample]:
    codes = _int32(*([row % 4, row % 3, 3 - row % 4] for row in range(20)))
    ids, counts = build_tables(codes, 2, 3, 0)
    x, labels = torch.randn(5, 3), torch.tensor([[1], [-1], [4], [1], [0]])
    packed = torch.nn.functional.pad(codes.byte(), (0, 1)).view(torch.int32)
    hashes = torch.randn(5, 6), 2, 1, 1, False
    tables = ids, counts, codes, *hashes
    return [
        Sample((x, labels, torch.tensor([19, 3]), *tables, 1, 2, 4, 20, 7, 0, 0, False)),
        Sample((x.bfloat16(), labels, None, *tables, 0, 1, 4, 20, 3, 0, 0, True)),
        Sample((x, labels, None, ids, counts, packed, *hashes, 0, 1, 2, 20, 7, 0, 0, False)),
    ]


def _largest_rows() -> list[Sample]:
    values, rows = torch.randn(9), torch.randperm(9)
    return [Sample((values, rows, 4)), Sample((values, rows, 40, torch.randn(9)))]


def _linear_adam() -> list[Sample]:
    of_weight, of_bias = (
        (torch.randn(shape), torch.zeros(shape), torch.zeros(shape), torch.tensor(2.0)) for shape in ((9, 4), (9,))
    )
    rows, touches, numbers = torch.tensor([1, 4, 7]), torch.arange(250, 259).byte(), (0.1, 0.9, 0.99, 1e-8, 0.01)
    gradients = torch.randn(3, 4), torch.randn(3)
    return [
        Sample((rows, *gradients, *of_weight, *of_bias, None, *numbers, False, False, False)),
        Sample((rows, *gradients, *of_weight, *of_bias, touches, *numbers, True, True, True)),
    ]


def _linear_softmax_adam() -> list[Sample]:
    rows, _, _, *update = _linear_adam()[1].arguments
    backward = torch.randn(3, 2), torch.randn(2), torch.randn(2, 4), rows
    return [
        Sample((*backward, None, 0, None, *update[:4], None, None, None, None, None, *update[9:])),
        Sample((*backward, torch.randn(()), 2, torch.randn(3), *update)),
    ]


def _hadamard(*sizes: int) -> Callable[[], list[Sample]]:
    def samples() -> list[Sample]:
        signs = torch.randint(2, (2, 3, 8)) * 2.0 - 1
        return [Sample((torch.randn(5, 9), signs, torch.randn(1, 12), *sizes))]

    return samples


def _query_vectors() -> list[Sample]:
    x = torch.randn(6, 4)
    return [Sample((x, 1)), Sample((x.double()[1::3], 0)), Sample((x.bfloat16().T, 2)), Sample((x[:0], 1))]


def _simhash_codes() -> list[Sample]:
    return [Sample((torch.randn(5, 9), torch.randn(9, 12), 3))]


def _simhash_products() -> list[Sample]:
    return [Sample((torch.randn(5, 9), torch.randn(9, 12)))]


def _dwta_codes() -> list[Sample]:
    return [Sample((torch.randn(5, 9), torch.randint(9, (6, 8)), 3, 0))]


def _probe_codes() -> list[Sample]:
    flips = (1 << torch.arange(4)).int().expand(2, 3, 4).unsqueeze(3).contiguous()
    return [Sample((torch.zeros(2, 3).int(), flips, torch.rand(2, 3, 4, 1), 5))]


def _tables() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    row_buckets = torch.randint(4, (20, 3), dtype=torch.int32)
    return *build_tables(row_buckets, 2, 4, 0), row_buckets


def _build_tables() -> list[Sample]:
    *_, row_buckets = _tables()
    return [Sample((row_buckets, 2, 4, 0)), Sample((row_buckets, 2, 4, 0, True))]


def _update_tables() -> list[Sample]:
    return [Sample((*_tables(), torch.tensor([3, 5]), _int32([0, 1, 2], [3, 2, 1]), 0))]


def _insert_labels() -> list[Sample]:
    ids, counts, _ = _tables()
    return [Sample((ids, counts, _int32([0, 1, 2], [3, 2, 1]), torch.tensor([[3, -1], [5, 7]]), 20, 0))]


def _query_tables() -> list[Sample]:
    ids, counts, row_buckets = _tables()
    buckets = _int32([0, 1, 2], [3, 2, 1])
    return [
        Sample((ids, counts, None, buckets, 6)),
        Sample((ids, counts, row_buckets, buckets, 6, 2)),
        Sample((ids, counts, None, buckets.unsqueeze(2), 3, 1, True)),
    ]


def _sampled_softmax_loss() -> list[Sample]:
    positions, shares = torch.tensor([[0, 2], [3, -1]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    return [
        Sample((_randn(2, 5), None, positions, shares)),
        Sample((_randn(5, 2).T, torch.randn(5), positions, shares)),
        Sample((_randn(2, 5), torch.randn(2, 5), positions, shares)),
    ]


def _sampled_softmax_loss_backward() -> list[Sample]:
    positions, shares = torch.tensor([[0, 2], [3, -1]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    logits = torch.randn(2, 5)
    return [Sample((torch.randn(2), logits.logsumexp(1), logits, None, positions, shares))]


def _linear_softmax_loss() -> list[Sample]:
    rows, positions = torch.tensor([1, 4, 7]), torch.tensor([[0, 2], [1, -1]])
    shares = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    x, weight, bias, log_weights = torch.randn(2, 3), torch.randn(9, 3), torch.randn(9), torch.randn(3)
    return [
        Sample((x, weight, None, rows, None, positions, shares)),
        Sample((x, weight, bias, rows, log_weights, positions, shares, 2.0)),
    ]


def _linear_softmax_sums() -> list[Sample]:
    return [Sample(sample.arguments[:6]) for sample in _linear_softmax_loss()]


def _linear_softmax_loss_backward() -> list[Sample]:
    arguments = torch.randn(3, 2), torch.randn(2), torch.randn(2, 4), torch.randn(9, 4), torch.tensor([1, 4, 7])
    grads = None, torch.randn(2), torch.randn(())
    hardest = (), (2,), (9, torch.randn(3))
    return [Sample((*arguments, needs, grad, *some)) for needs in (True, False) for grad, some in zip(grads, hardest)]


def _topk(*rows: torch.Tensor) -> Callable[[], list[Sample]]:
    def samples() -> list[Sample]:
        x, weight, bias = torch.randn(3, 6), torch.randn(40, 6), torch.randn(40)
        int8, scale = torch.randint(-127, 128, (40, 6), dtype=torch.int8), torch.rand(40)
        return [
            Sample((x, weight, bias, *rows, 5)),
            Sample((x.double(), weight.double(), None, *rows, 5)),
            Sample((x, int8, None, *rows, 5, scale)),
        ]

    return samples


def _sketch_candidates() -> list[Sample]:
    codes = torch.randint(256, (2, 1, 64), dtype=torch.uint8)
    factors = torch.stack([torch.zeros(2, 64), torch.randperm(128).view(2, 64)], 1).bfloat16()
    return [Sample((torch.randn(2, 8), codes, factors, 100, 5))]


def _partition() -> tuple[torch.Tensor, ...]:
    """Codes, factors, ids, next, heads, places and buckets of 9 rows in 2 buckets, filled by the twin."""
    store = (
        torch.zeros(3, 2, 64, dtype=torch.uint8),
        torch.tensor([0, -torch.inf]).bfloat16().view(1, 2, 1).repeat(3, 1, 64),
        torch.full((3, 64), -1, dtype=torch.int32),
        _int32(1, 2, -1),
        _int32([-1, 0], [-1, 0], [0, 0]),
        torch.full((9,), -1, dtype=torch.int32),
        torch.zeros(9, dtype=torch.int32),
    )
    codes = torch.randint(256, (9, 2), dtype=torch.uint8)
    factors = torch.stack([torch.zeros(9), torch.randperm(9)], 1).bfloat16()
    update_partition(*store, torch.arange(9), torch.arange(9).int() % 2, codes, factors)
    return store


def _update_partition() -> list[Sample]:
    codes, factors = torch.randint(256, (2, 2), dtype=torch.uint8), torch.randn(2, 2).bfloat16()
    return [Sample((*_partition(), torch.tensor([3, 4]), _int32(0, 0), codes, factors))]


def _query_partition() -> list[Sample]:
    scores, centers = torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.zeros(2, 16)
    return [Sample((torch.randn(2, 16), scores, centers, *_partition()[:5], 7, examined)) for examined in (3, 50)]


def _search_partition() -> list[Sample]:
    directions = torch.zeros(1, 2, 64, dtype=torch.uint8), torch.zeros(1, 2, 64).bfloat16()
    directions[1][0, 1, :2] = torch.tensor([1.0, 2.0])
    given = (torch.randn(2, 5), torch.randn(16, 5), *directions, torch.zeros(2, 16), *_partition()[:5], 7)
    return [Sample((*given, examined)) for examined in (3, 50)]


def _nearest_members() -> list[Sample]:
    first, centers = torch.tensor([0, 40, 40, 100]), torch.randn(100, 7)
    return [
        Sample((torch.randn(n, 7), torch.randint(2, (n, 2)) * 2, first, centers, torch.randn(100))) for n in (0, 1, 70)
    ]


def _residual_codes() -> list[Sample]:
    return [Sample((torch.randn(3, 16), torch.randn(4, 16), _int32(0, 3, 1), bits)) for bits in (1, 4)]


def _nearest_rows() -> list[Sample]:
    by_row = torch.tensor([0, 1, 3]), _int32(1, 0, 1), torch.tensor([5.0, 7.0, 2.0])
    by_column = torch.tensor([0, 1, 3]), _int32(1, 0, 1), torch.tensor([7.0, 5.0, 2.0])
    return [Sample((torch.tensor([0, 2]), torch.tensor([0, 1]), torch.ones(2), *by_row, *by_column, 2, 2, 10))]


def _rows_of_labels() -> tuple[torch.Tensor, ...]:
    rows = torch.tensor([0, 2, 3, 3]), _int32(0, 3, 1), torch.tensor([1.0, -2.0, 3.0])
    return *rows, 4, torch.tensor([0, 2, 2, 5]), _int32(0, 1, 2, 1, 0)


def _label_votes() -> list[Sample]:
    rows, weights = torch.tensor([[1, 0, -1], [2, 2, 1]]), torch.rand(2, 3, 2) + 0.1
    labels = torch.tensor([0, 2, 3, 3]), _int32(4, 0, 0), 5
    return [Sample((rows, weights, *labels, keep, torch.tensor([[3, 0], [-1, 3]]))) for keep in (0, 1, 3)]


def _fit_linear_rows() -> list[Sample]:
    positive = torch.tensor([True, False, True, False, False])
    return [Sample((*_rows_of_labels(), positive, torch.tensor([0.5, 1.0]), 5, 0.1, 7), has_fake=False)]


def _fit_dense_rows() -> list[Sample]:
    start, label_rows = _rows_of_labels()[4:]
    positive = torch.tensor([True, False, True, False, False])
    return [Sample((torch.randn(3, width), start, label_rows, positive, 0.5, 5, 7)) for width in (3, 37, 0)]


def _sparse_dot() -> list[Sample]:
    queries = torch.tensor([0, 2, 2]), torch.tensor([0, 1]), torch.ones(2)
    return [Sample((*queries, *_rows_of_labels()[:4], torch.tensor([[2, 0, -1], [1, 1, 0]])))]


#: The samples of each operator, made anew by every call, for tests change some.
def _committee() -> tuple[torch.Tensor, ...]:
    """Candidates of 5 values, which there are not, and the layers of a committee.

    No unit is active for all candidates: the slopes of its bias would be those of rounding alone.
    """
    return torch.randn(9, 20, 5), torch.rand(9, 20) < 0.2, torch.randn(64, 5), torch.zeros(64), torch.randn(64)


def _committee_scores() -> list[Sample]:
    values, none, *layers = _committee()
    return [Sample((values, none, torch.randn(5), torch.rand(5) + 0.5, *layers))]


def _fit_committee() -> list[Sample]:
    values, none, *layers = _committee()
    order = torch.stack([torch.randperm(9)[:7] for _ in range(2)])
    return [Sample((values, none, torch.rand(9, 20) < 0.2, order, 4, *layers, 0.01, 0.1))]


SAMPLES: dict[str, Callable[[], list[Sample]]] = {
    "build_tables": _build_tables,
    "coalesce_rows": lambda: [Sample((torch.tensor([4, 1, 4]), torch.randn(3, 2)))],
    "committee_scores": _committee_scores,
    "count_columns_": lambda: [
        Sample((torch.ones(2, 6, dtype=torch.int32), _csr()[0], _csr()[1].int(), _int32(1, 0, 1), *more))
        for more in ((), (_int32(0, -1, 1, 2, 5, 3),))
    ],
    "count_touches_": lambda: [Sample((torch.tensor([0, 255, 0]).byte(), torch.tensor([0, 1, 0])))],
    "cross_polytope_codes": _hadamard(2, 3),
    "draw_hashed_rows": _draw_hashed_rows,
    "draw_rows": _draw_rows,
    "dwta_codes": _dwta_codes,
    "embedding_bag": _embedding_bag,
    "embedding_bag_backward": lambda: [Sample((torch.randn(3, 2), *_csr(), torch.randn(3)))],
    "embedding_bag_values_backward": lambda: [Sample((torch.randn(3, 2), torch.randn(6, 2), *_csr()))],
    "extremes": lambda: [Sample((torch.tensor([3, -1, 5]),), has_fake=False)],
    "fit_committee": _fit_committee,
    "fit_dense_rows": _fit_dense_rows,
    "fit_linear_rows": _fit_linear_rows,
    "gather_rows": _gather_rows,
    "hadamard_codes": _hadamard(3),
    "hadamard_products": _hadamard(),
    "hash_text": lambda: [
        Sample((_words(b"to be, or not"), torch.tensor([0, 5, 13]), 20, 2, 3, 4, True, "log", True, 7, True, True))
    ],
    "insert_labels": _insert_labels,
    "is_increasing": lambda: [
        Sample((torch.tensor([1, 3, last]), below), has_fake=False) for last, below in ((5, None), (3, None), (5, 5))
    ],
    "label_votes": _label_votes,
    "largest_rows": _largest_rows,
    "linear_adam_": _linear_adam,
    "linear_softmax_adam_": _linear_softmax_adam,
    "linear_softmax_loss": _linear_softmax_loss,
    "linear_softmax_loss_backward": _linear_softmax_loss_backward,
    "linear_softmax_sums": _linear_softmax_sums,
    "linear_topk": _topk(),
    "nearest_members": _nearest_members,
    "nearest_rows": _nearest_rows,
    "parse_xmc": lambda: [Sample((_words(b"1,2 0:1.5 3:2\n\n"), 4, 3), has_fake=False)],
    "positive_sums": lambda: [Sample((torch.randn(3, 4),)), Sample((torch.randn(4, 3).T,))],
    "prefer_huge_pages": lambda: [Sample((torch.randn(9),), has_twin=False)],
    "probe_codes": _probe_codes,
    "product": _product,
    "query_partition": _query_partition,
    "query_tables": _query_tables,
    "residual_codes": _residual_codes,
    "row_sparse_adagrad_": _row_sparse_adagrad,
    "row_sparse_adam_": _row_sparse_adam,
    "row_sparse_lion_": _row_sparse_lion,
    "row_sparse_sgd_": _row_sparse_sgd,
    "rows_topk": _topk(torch.tensor([[1, -1, 3], [0, 39, 7], [-1, -1, -1]])),
    "sampled_dot": _sampled_dot,
    "sampled_softmax_loss": _sampled_softmax_loss,
    "sampled_softmax_loss_backward": _sampled_softmax_loss_backward,
    "score_text": _score_text,
    "search_partition": _search_partition,
    "select_rows": _select_rows,
    "cpu_tuning": lambda: [Sample((), has_fake=False, has_twin=False)],
    "multiplies_bfloat16": lambda: [Sample((), has_fake=False, has_twin=False)],
    "simd_level": lambda: [Sample((), has_fake=False, has_twin=False)],
    "query_vectors": _query_vectors,
    "simhash_codes": _simhash_codes,
    "simhash_products": _simhash_products,
    "sketch_candidates": _sketch_candidates,
    "sparse_dot": _sparse_dot,
    "sum_rows": lambda: [Sample((*_rows_of_labels(), 0.5, unit), has_fake=False) for unit in (True, False)],
    "take_runs": lambda: [
        Sample((torch.tensor([0, 2, 2, 5]), values, torch.tensor(runs, dtype=torch.int64)), has_fake=False)
        for values in (torch.arange(5.0), _int32(7, 8, 4, 5, 6))
        for runs in ([2, 1, 0, 2], [])
    ],
    "transpose_rows": lambda: [Sample(_rows_of_labels()[:4])],
    "update_partition": _update_partition,
    "update_tables": _update_tables,
    "use_simd_level": lambda: [Sample((ops.simd_level(),), has_twin=False)],
    "zero_rows_": lambda: [Sample((torch.randn(5, 3),)), Sample((torch.randn(0, 3),)), Sample((torch.randn(7),))],
    "weigh_columns": lambda: [
        Sample((*_csr(), torch.randn(3), _int32(0, 1, -1, 2, 3, 0), torch.randn(4))),
        Sample((*(_csr()[0], _csr()[1].int()), torch.randn(3), _int32(*range(6)), torch.randn(6))),
    ],
    "word_spans": lambda: [Sample((_words(b"to be!"), True))],
}
