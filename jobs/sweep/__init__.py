"""`prefixworks sweep`: training runs that differ in a few settings, and which of them is best."""

from jobs.sweep.command import main

__all__ = ["main"]
