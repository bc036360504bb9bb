"""Data preparation: raw annotations and images in, WebDataset shards and a manifest out.

Nothing here imports torch, so preparation runs on nodes that have only CPUs and Pillow.
"""
