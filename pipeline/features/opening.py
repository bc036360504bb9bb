"""Features of a run's data: opened, and refused when they are of something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model.tensor_files import Whole
from model.tuning import TunedModel
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.features.files import FeatureFiles
from pipeline.features.record import trunk_fingerprint


def frozen_trunk(config: RunConfig, model: TunedModel, whole: Whole | None = None) -> str | None:
    """The fingerprint of a model's image trunk, where the run has features; None where not.

    Args:
        config: The run.
        model: Its model; this rank may hold a part of it.
        whole: Collects a tensor of which this rank holds a part; None where it holds all.

    Raises:
        ConfigError: the trunk is trained.
    """
    if not config.data.features:
        return None
    trunk = model.base.encoder.embed_images
    if any(parameter.requires_grad for parameter in trunk.parameters()):
        raise ConfigError(
            f"data.features = {config.data.features}: the run trains the image trunk, so its"
            " features change; leave data.features out"
        )
    return trunk_fingerprint(trunk, whole)


def open_features(
    config: RunConfig, image_size: int, trunk: str | None, digests: Sequence[str]
) -> list[FeatureFiles] | None:
    """Opens the features of a run's training data, and refuses those that are of something else.

    Args:
        config: The run.
        image_size: Side in pixels of the square that it resizes images to.
        trunk: Fingerprint of its image trunk.
        digests: Of the manifests of the training data, in their order.

    Returns:
        Features in the order of the data; None where the run computes its own.

    Raises:
        ConfigError: the trunk, the images or the data are not those of the features.
        DataError: features are missing or damaged.
    """
    if not config.data.features:
        return None
    assert trunk is not None, "features are compared with the trunk that they shall be of"
    expected: dict[str, object] = {
        "trunk": trunk,
        "image_size": image_size,
        "precision": config.engine.precision,
    }
    found: dict[str, FeatureFiles] = {}
    for folder in config.data.features:
        files = FeatureFiles(Path(folder))
        for name, value in expected.items():
            own = getattr(files.manifest.kind, name)
            if own != value:
                raise ConfigError(
                    f"data.features = {folder!r}: made with {name} {own}, the run has {value};"
                    " `prefixworks features` makes others"
                )
        found[files.manifest.dataset] = files
    stray = [files.folder for digest, files in found.items() if digest not in digests]
    if stray:
        raise ConfigError(
            f"data.features = {str(stray[0])!r}: made of other data than data.train, or the data"
            " were prepared anew"
        )
    lacking = [at for at, digest in enumerate(digests) if digest not in found]
    if lacking:
        raise ConfigError(
            f"data.features: none for {config.data.train[lacking[0]]!r}; give those of every"
            " training data set, or none"
        )
    return [found[digest] for digest in digests]
