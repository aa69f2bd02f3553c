"""A server shows what hidden states say, to the person at its own machine. It needs `pip install "lenscope[serve]"`."""

from lenscope.web.limits import Limits
from lenscope.web.served import Served, ServedLens, ServedMapping, ServedModel
from lenscope.web.view import view_application

__all__ = ["Limits", "Served", "ServedLens", "ServedMapping", "ServedModel", "view_application"]
