"""Errors a user can cause. Each message says what, where, found, expected and what to do.

Command line tools print the message on one line and exit with code 1. Anything else that
escapes is a fault of this program and shows its traceback.
"""


class So8tError(ValueError):
    """Base of every input error."""


class AlgebraError(So8tError):
    """An array is not what the mathematics needs: wrong shape, not skew, not in SO(8), not finite."""


class ConfigError(So8tError):
    """A configuration is missing, contradictory or of an unsupported family."""


class CheckpointError(So8tError):
    """A model directory or file is missing, truncated, malformed or does not fit its configuration."""


class ConversionError(So8tError):
    """A checkpoint is readable, but cannot be written in the requested form."""


class RuntimeLibraryError(So8tError):
    """The patched llama.cpp library is missing, or refused a model."""
