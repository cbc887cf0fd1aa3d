"""Training by several processes."""

from .data_parallel import RowExchange, exchange_rows_, row_parameters
from .gradients import average_gradients, broadcast_parameters
from .sharded import ShardedLogits, ShardedLSHLinear, ShardedRows

__all__ = [
    "RowExchange",
    "ShardedLSHLinear",
    "ShardedLogits",
    "ShardedRows",
    "average_gradients",
    "broadcast_parameters",
    "exchange_rows_",
    "row_parameters",
]
