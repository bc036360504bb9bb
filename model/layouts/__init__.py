"""Checkpoints in the layouts that others publish, and their conversion into a base folder.

Only this package knows the key names and settings of other projects. `reading.open_checkpoint`
opens any layout under our own names; nothing here runs code that a file brings along.
"""
