"""Region propagation (CorrMatch equations 7-10): shapes of a correlation map, and confident labels spread over them."""

from .propagate import region_propagation
from .rows import propagate_rows, row_shapes

__all__ = ["propagate_rows", "region_propagation", "row_shapes"]
