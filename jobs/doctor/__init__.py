"""`prefixworks doctor`: check a machine or the nodes of a job, and say what to do."""

from jobs.doctor.command import main

__all__ = ["main"]
