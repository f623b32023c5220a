"""StripedHyena 2 (arXiv:2503.01868): a convolutional multi-hybrid language model that runs from a streaming state."""

from stripedhyena2.checkpoints import load_model, save_model
from stripedhyena2.config import PRESETS, Config, preset
from stripedhyena2.errors import CheckpointError, ConfigError, ModelError
from stripedhyena2.model import StripedHyena2
from stripedhyena2.state import ModelState

__all__ = [
    "PRESETS",
    "CheckpointError",
    "Config",
    "ConfigError",
    "ModelError",
    "ModelState",
    "StripedHyena2",
    "load_model",
    "preset",
    "save_model",
]
