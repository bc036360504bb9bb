"""The one error that the model package raises for its users."""


class CheckpointError(Exception):
    """A checkpoint, base folder or prompt cannot be loaded: the message says which and why."""
