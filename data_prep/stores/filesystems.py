"""Clients of object stores: Arrow's own for S3 and Google, fsspec's where Arrow has none.

Endpoint and region come from the location, else from the AWS_* variables that other tools read.
Credentials never stand in a location; the clients find them where they always do.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs

from data_prep.errors import DataError
from data_prep.stores.locations import Location
from data_prep.stores.retries import Retries

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 20.0
"""A request that transfers nothing for so long has failed."""
IO_THREADS = 32
"""Requests under way at once from one process."""


def open_filesystem(location: Location, retries: Retries) -> Any:
    """Makes the client of a remote location; most errors only show at the first request.

    Raises:
        DataError: The endpoint is not one, or the package for the scheme is missing.
        StoreError: The region of a bucket cannot be found out.
    """
    pa.set_io_thread_count(max(IO_THREADS, pa.io_thread_count()))
    makers = {"s3": _s3, "gs": _gs, "hf": _hf}
    return makers[location.scheme](location, retries)


def _endpoint(url: str) -> tuple[str, str]:
    """Scheme and host:port of an endpoint."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise DataError(f"endpoint {url!r:.200}: expected http(s)://host[:port]")
    return parts.scheme, parts.netloc


def _s3(location: Location, retries: Retries) -> Any:
    url = location.options.get("endpoint")
    url = url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = location.options.get("region")
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    settings: dict[str, Any] = {}
    if url:
        settings["scheme"], settings["endpoint_override"] = _endpoint(url)
        region = region or "us-east-1"
    if not region:
        bucket = location.path.partition("/")[0]
        region = retries.run(f"s3://{bucket}", lambda: pa.fs.resolve_s3_region(bucket))
    return pa.fs.S3FileSystem(
        region=region,
        anonymous=location.options.get("anonymous") == "true",
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        # Retries has the one place that counts attempts.
        retry_strategy=pa.fs.AwsStandardS3RetryStrategy(max_attempts=1),
        **settings,
    )


def _gs(location: Location, retries: Retries) -> Any:
    settings: dict[str, Any] = {}
    if "endpoint" in location.options:
        settings["scheme"], settings["endpoint_override"] = _endpoint(location.options["endpoint"])
    return pa.fs.GcsFileSystem(
        anonymous=location.options.get("anonymous") == "true",
        # Google's client cannot be told to leave retries to us: it gets one short round.
        retry_time_limit=timedelta(seconds=1 + int(retries.first_delay_s)),
        **settings,
    )


class _Handler(pa.fs.FSSpecHandler):  # type: ignore[misc]
    """An fsspec filesystem that reads what it is asked for and fails as Arrow's own do."""

    def get_file_info(self, paths: list[str]) -> Any:
        with _as_os_errors():
            return super().get_file_info(paths)

    def open_input_file(self, path: str) -> Any:
        with _as_os_errors():
            # By default fsspec reads megabytes ahead, which a range of a file does not want.
            return pa.PythonFile(self.fs.open(path, mode="rb", cache_type="none"), mode="r")


@contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        # HTTP clients have their own families of errors, which change between versions.
        raise OSError(f"{type(error).__name__}: {error}") from error


def _hf(location: Location, retries: Retries) -> Any:
    from huggingface_hub import HfFileSystem

    return pa.fs.PyFileSystem(_Handler(HfFileSystem()))
