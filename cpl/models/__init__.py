"""The networks: CPL's, and those it is built on, from the same parts."""

from cpl.models.checkpoint import load_checkpoint, save_checkpoint
from cpl.models.config import MODELS, ModelConfig
from cpl.models.create import create_model
from cpl.models.restorer import Restorer

__all__ = ["MODELS", "ModelConfig", "Restorer", "create_model", "load_checkpoint", "save_checkpoint"]
