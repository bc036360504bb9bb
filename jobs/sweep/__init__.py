"""Sweeps: many training runs that differ in a few settings, and which of them is best."""
