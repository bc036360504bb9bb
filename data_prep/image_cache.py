"""Stored images that the next records of a shard may need again, within a bound of memory."""

from collections import OrderedDict

from data_prep.config import ImagePolicy
from data_prep.images import StoredImage, store_image
from data_prep.quarantine import Rejected
from data_prep.stores import open_store

CACHE_BYTES = 64_000_000
"""Bytes of stored images that a worker keeps."""


class ImageCache:
    """Reads and stores images; the ones used last are kept."""

    def __init__(self, policy: ImagePolicy, limit: int = CACHE_BYTES) -> None:
        """Starts empty.

        Args:
            policy: How images are stored.
            limit: Bytes of stored images that are kept.
        """
        self._policy = policy
        self._limit = limit
        self._kept: OrderedDict[tuple[str, str, str], StoredImage | Rejected] = OrderedDict()
        self.bytes = 0
        """Bytes that are kept now."""
        self.loaded = 0
        """Images that were read and stored, again where they had not been kept."""

    def __call__(self, location: str, address: str, name: str) -> StoredImage:
        """The image at an address of a store, under the name that its sample gives it.

        Raises:
            Rejected: It is missing, unreadable or no image.
            StoreError: The store cannot be reached.
        """
        # The name goes into what is kept, and copies of equal bytes share one address.
        key = (location, address, name)
        found = self._kept.get(key)
        if found is None:
            found = self._load(location, address, name)
            self._keep(key, found)
        else:
            self._kept.move_to_end(key)
        if isinstance(found, Rejected):
            raise Rejected(found.reason, found.detail)
        return found

    def _load(self, location: str, address: str, name: str) -> StoredImage | Rejected:
        try:
            image = store_image(open_store(location).read(address), name, self._policy)
        except Rejected as rejected:
            # The reason alone: the exception would keep its frames and the image's bytes alive.
            return Rejected(rejected.reason, rejected.detail)
        self.loaded += 1
        return image

    def _keep(self, key: tuple[str, str, str], image: StoredImage | Rejected) -> None:
        self._kept[key] = image
        self.bytes += _size(image)
        while self.bytes > self._limit:
            self.bytes -= _size(self._kept.popitem(last=False)[1])


def _size(image: StoredImage | Rejected) -> int:
    # A kilobyte stands for the objects themselves.
    return 1024 + (len(image.content) if isinstance(image, StoredImage) else 0)
