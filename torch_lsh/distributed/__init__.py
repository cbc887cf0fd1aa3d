"""Training by several processes."""

from .data_parallel import exchange_rows_, row_parameters
from .gradients import average_gradients, broadcast_parameters
from .row_exchange import RowExchange
from .sharded import ShardedLogits, ShardedLSHLinear, ShardedRows, clip_grad_norm_

__all__ = [
    "RowExchange",
    "ShardedLSHLinear",
    "ShardedLogits",
    "ShardedRows",
    "average_gradients",
    "broadcast_parameters",
    "clip_grad_norm_",
    "exchange_rows_",
    "row_parameters",
]
