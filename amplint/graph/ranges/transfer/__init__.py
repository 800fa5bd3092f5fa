"""What each ATen operation does to a box: a table by the operation's name (aten.add.Tensor and aten.add_ are "add")."""

from amplint.graph.ranges.transfer import (  # noqa: F401  (each module registers its operations)
    attention,
    binary,
    contract,
    create,
    loss,
    normalise,
    pool,
    recurrent,
    reduce,
    select,
    unary,
    view,
)
from amplint.graph.ranges.transfer.table import TABLE, Call

__all__ = ["TABLE", "Call"]
