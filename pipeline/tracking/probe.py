"""Asking a tracking store whether it is there and takes us."""

from __future__ import annotations

from mlflow.exceptions import MlflowException

from pipeline.errors import RegistryError
from pipeline.tracking.config import StoreLocation
from pipeline.tracking.delivery import open_client
from pipeline.tracking.secrets import redact


def probe_store(location: StoreLocation, request_timeout_s: int) -> str:
    """Makes one small request that needs a login where the store has users.

    Args:
        location: The store.
        request_timeout_s: Longest wait for one answer.

    Returns:
        What the store showed, in words.

    Raises:
        RegistryError: it does not answer, or refuses.
    """
    try:
        found = open_client(location, request_timeout_s).search_experiments(max_results=1)
    # The HTTP client's errors are OSErrors, and pass MLflow unchanged when no answer came.
    except (MlflowException, OSError) as error:
        reason = redact(" ".join(str(error).split()))[:200]
        raise RegistryError(reason) from error
    return "experiments can be read" if found else "it has no experiments that this user may read"
