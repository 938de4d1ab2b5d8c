"""Weights from other projects' files."""

from cpl.interop.weights import ForeignWeights, read_weights

__all__ = ["ForeignWeights", "read_weights"]
