"""What the frozen image trunk makes of a data set's images, computed once and kept on disk.

In reading order: config, record (the format), compute (one shard), files (reading while training),
opening (which features a run may have).
"""
