"""What work costs on machines that are not there: memory, products, bytes and hours, from a configuration alone."""

from lenscope.planning.machines import MACHINES as MACHINES
from lenscope.planning.machines import Machine as Machine
from lenscope.planning.machines import machine as machine
from lenscope.planning.model_shapes import ModelShape as ModelShape
from lenscope.planning.model_shapes import model_shape as model_shape
from lenscope.planning.plan import Task as Task
from lenscope.planning.plan import TaskPlan as TaskPlan
from lenscope.planning.plan import plan as plan
