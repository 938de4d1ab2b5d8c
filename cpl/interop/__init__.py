"""Other projects' weights and models."""

from cpl.interop.patch import PatchReport, patch, unpatch
from cpl.interop.weights import ForeignWeights, read_weights

__all__ = ["ForeignWeights", "PatchReport", "patch", "read_weights", "unpatch"]
