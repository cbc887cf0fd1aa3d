"""Every operator again in plain PyTorch: what the tests compare with, and a definition of what each one computes.

Names and arguments are those of :mod:`torch_lsh.ops`. Clarity goes before speed.
"""

from .committee import committee_scores, fit_committee
from .count_touches import count_touches_
from .draw_hashed_rows import draw_hashed_rows
from .embedding_bag import coalesce_rows, embedding_bag, embedding_bag_backward, embedding_bag_values_backward
from .first_touch import zero_rows_
from .gather import gather_rows
from .hadamard import cross_polytope_codes, hadamard_codes, hadamard_products
from .hash import dwta_codes, query_vectors, simhash_codes, simhash_products
from .hash_text import hash_text, word_spans
from .hashed_columns import count_columns_, weigh_columns
from .label_votes import label_votes
from .largest_rows import largest_rows
from .linear_adam import linear_adam_, linear_softmax_adam_
from .linear_softmax import (
    labels_weigh_one,
    linear_softmax_loss,
    linear_softmax_loss_backward,
    linear_softmax_sums,
)
from .nearest_members import nearest_members
from .nearest_rows import nearest_rows
from .one_vs_rest import fit_dense_rows, fit_linear_rows, sparse_dot, sum_rows, transpose_rows
from .optimizer import row_sparse_adagrad_, row_sparse_adam_, row_sparse_lion_, row_sparse_sgd_
from .partition import query_partition, residual_codes, search_partition, update_partition
from .probes import probe_codes
from .product import gather_matmul, product
from .rows import extremes, is_increasing, take_runs
from .sampled_dot import sampled_dot
from .score_text import score_text
from .select_rows import draw_rows, select_rows
from .sketch import sketch_candidates
from .softmax import positive_sums, sampled_softmax_loss, sampled_softmax_loss_backward
from .tables import build_tables, insert_labels, query_tables, update_tables
from .topk import linear_topk, rows_topk
from .xmc_reader import parse_xmc

__all__ = [
    "build_tables",
    "coalesce_rows",
    "committee_scores",
    "count_columns_",
    "count_touches_",
    "cross_polytope_codes",
    "draw_hashed_rows",
    "draw_rows",
    "dwta_codes",
    "embedding_bag",
    "embedding_bag_backward",
    "embedding_bag_values_backward",
    "extremes",
    "fit_committee",
    "fit_dense_rows",
    "fit_linear_rows",
    "gather_matmul",
    "gather_rows",
    "hadamard_codes",
    "hadamard_products",
    "hash_text",
    "insert_labels",
    "is_increasing",
    "label_votes",
    "labels_weigh_one",
    "largest_rows",
    "linear_adam_",
    "linear_softmax_adam_",
    "linear_softmax_loss",
    "linear_softmax_loss_backward",
    "linear_softmax_sums",
    "linear_topk",
    "nearest_members",
    "nearest_rows",
    "parse_xmc",
    "positive_sums",
    "probe_codes",
    "product",
    "query_partition",
    "query_tables",
    "query_vectors",
    "residual_codes",
    "row_sparse_adagrad_",
    "row_sparse_adam_",
    "row_sparse_lion_",
    "row_sparse_sgd_",
    "rows_topk",
    "sampled_dot",
    "sampled_softmax_loss",
    "sampled_softmax_loss_backward",
    "score_text",
    "search_partition",
    "select_rows",
    "simhash_codes",
    "simhash_products",
    "sketch_candidates",
    "sparse_dot",
    "sum_rows",
    "take_runs",
    "transpose_rows",
    "update_partition",
    "update_tables",
    "weigh_columns",
    "word_spans",
    "zero_rows_",
]
