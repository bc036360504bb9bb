"""Which failures of an object store are tried again, and what a person is told of the others."""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from data_prep.stores.base import StoreError

T = TypeVar("T")

_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|INVALID_SIGNATURE|SIGNATURE_DOES_NOT"
    r"|EXPIRED_TOKEN|InvalidToken|ExpiredToken|MISSING_AUTHENTICATION|NOT_INITIALIZED"
    r"|UNRECOGNIZED_CLIENT|PERMISSION_DENIED|UNAUTHENTICATED|HTTP status 40[13]|\b40[13] Client"
)
_ELSEWHERE = re.compile(r"PermanentRedirect|HTTP status 30[17]|AuthorizationHeaderMalformed")
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket")


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often and how patiently a request is repeated."""

    attempts: int = 5
    """Requests in all, before the store counts as unreachable."""
    first_delay_s: float = 0.5
    """Wait before the second request; each further wait is twice as long."""

    def run(self, store: str, action: Callable[[], T]) -> T:
        """Runs an action until it does not fail in a passing way.

        Args:
            store: The store as error messages call it.
            action: One request; safe to repeat.

        Raises:
            FileNotFoundError: What was asked for is not there.
            StoreError: The store refuses, or cannot be reached.
        """
        for attempt in range(self.attempts):
            try:
                return action()
            except FileNotFoundError as error:
                if _NO_BUCKET.search(str(error)):
                    raise StoreError(f"{store}: there is no such bucket") from error
                raise
            # Arrow, fsspec and the HTTP clients under them all derive their errors from these.
            except (OSError, ValueError) as error:
                _raise_if_lasting(store, error)
                if attempt + 1 == self.attempts:
                    raise StoreError(
                        f"{store} cannot be reached ({self.attempts} attempts; {_line(error)}): "
                        "check the network, the endpoint and the region"
                    ) from error
                # Workers that failed together should not come back together.
                time.sleep(self.first_delay_s * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError("attempts is at least 1")


def _raise_if_lasting(store: str, error: Exception) -> None:
    """Raises StoreError when asking again cannot help."""
    text = str(error)
    if _NO_BUCKET.search(text):
        raise StoreError(f"{store}: there is no such bucket") from error
    if isinstance(error, PermissionError) or _REFUSED.search(text):
        raise StoreError(
            f"{store} refuses access ({_line(error)}): check the credentials of this process and "
            "that they may read and list the bucket"
        ) from error
    if _ELSEWHERE.search(text):
        raise StoreError(f"{store} is in another region ({_line(error)}): give ?region=") from error
    if isinstance(error, ValueError):
        raise StoreError(f"{store}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
