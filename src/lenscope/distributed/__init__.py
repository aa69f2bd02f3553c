"""Several processes that do the work of one."""

from lenscope.distributed.placement import placed
from lenscope.distributed.sharding import sharded

__all__ = ["placed", "sharded"]
