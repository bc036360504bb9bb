"""Where bytes come from: images by their address, annotation files by their location."""

from data_prep.stores.addresses import range_address, range_length
from data_prep.stores.base import MISSING, ImageStore, Stamp, StoreError
from data_prep.stores.inputs import input_name, input_sha256, open_input
from data_prep.stores.locations import (
    absolute_location,
    file_location,
    is_remote,
    parent_location,
)
from data_prep.stores.opening import close_stores, open_store

__all__ = [
    "MISSING",
    "ImageStore",
    "Stamp",
    "StoreError",
    "absolute_location",
    "close_stores",
    "file_location",
    "input_name",
    "input_sha256",
    "is_remote",
    "open_input",
    "open_store",
    "parent_location",
    "range_address",
    "range_length",
]
