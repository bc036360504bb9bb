"""Where a prediction may take images from, as the person who runs the service allows it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pipeline.errors import ConfigError

SOURCES_VARIABLE = "PREFIXWORKS_IMAGE_SOURCES"
"""Environment variable: comma-separated kinds of places that images may come from."""
KINDS = ("path", "url", "private-url", "file-url")
_DEFAULT = "path,url"


@dataclass(frozen=True, kw_only=True)
class ImageSources:
    """What is allowed besides images that a request carries itself."""

    paths: bool = True
    """Paths of files on the machine that predicts."""
    urls: bool = True
    """`http://` and `https://` URLs of public addresses."""
    private_urls: bool = False
    """Such URLs of loopback and private networks."""
    file_urls: bool = False
    """`file://` URLs."""

    @classmethod
    def from_environment(cls) -> ImageSources:
        """What PREFIXWORKS_IMAGE_SOURCES allows; paths and public URLs where it is not set.

        Raises:
            ConfigError: it names a kind that does not exist.
        """
        text = os.environ.get(SOURCES_VARIABLE, _DEFAULT)
        kinds = {kind.strip() for kind in text.split(",") if kind.strip()}
        unknown = sorted(kinds - set(KINDS))
        if unknown:
            raise ConfigError(f"{SOURCES_VARIABLE}: {unknown[0]!r} is none of {', '.join(KINDS)}")
        return cls(
            paths="path" in kinds,
            urls="url" in kinds or "private-url" in kinds,
            private_urls="private-url" in kinds,
            file_urls="file-url" in kinds,
        )

    @staticmethod
    def refusal(kind: str) -> str:
        """Why a place is refused, and how to allow it."""
        return f"not allowed here; {SOURCES_VARIABLE} with {kind} allows it"
