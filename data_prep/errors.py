"""The error that a person can act on when prepared or raw data are not as they should be."""


class DataError(Exception):
    """Data that are missing, malformed, corrupt, or rejected beyond the allowed share."""
