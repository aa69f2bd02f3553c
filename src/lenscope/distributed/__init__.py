"""Several processes that do the work of one."""

from lenscope.distributed.sharding import sharded

__all__ = ["sharded"]
