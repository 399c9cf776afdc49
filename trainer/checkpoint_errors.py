"""How saving and loading fail."""


class CheckpointError(Exception):
    """No checkpoint could be written or read; the message says why. Raised on all ranks alike."""


class CheckpointMismatch(CheckpointError):
    """The configuration names checkpoints that are not there, or are of another model or other data."""
