"""Errors about models, configurations and checkpoints: one line, what is wrong and how to fix it."""


class ModelError(ValueError):
    """Base of every error this package raises for its user."""


class ConfigError(ModelError):
    """A configuration that does not describe a model."""


class CheckpointError(ModelError):
    """A checkpoint that cannot be read, or does not fit its configuration."""
