"""Stages as jobs of a scheduler: described once, frozen, rendered by a backend, submitted."""
