"""Training by several processes."""

from .data_parallel import exchange_rows_, row_parameters
from .gradients import average_gradients, broadcast_parameters
from .row_exchange import RowExchange
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
