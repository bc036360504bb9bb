"""The values that a new run starts from: another prompt, or activations of its base.

Every rank computes the same from the same bytes, so nothing is sent around.
"""

from __future__ import annotations

from model.tuning import TunedModel
from model.tuning.initial import Examples, activated, resized
from pipeline.config import RunConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.registry.artifact import check_base, read_prompt
from pipeline.training.loader import Loader


def set_initial_values(
    model: TunedModel, config: RunConfig, loader: Loader, base_fingerprint: str
) -> None:
    """Gives what is trained its first values, where they are not the random ones it has.

    Args:
        model: On the CPU, as it was built.
        config: The run.
        loader: Of this rank; it knows the run's first samples.
        base_fingerprint: Of the model's base.

    Raises:
        RegistryError: the other prompt is damaged, or was made for another base.
        ConfigError: the other prompt or the samples do not fit.
    """
    if config.initial.values == "random":
        return
    own = model.export_state()
    try:
        if config.initial.prompt is not None:
            cause = f"initial.prompt = {config.initial.prompt!r}"
            artifact = read_prompt(config.initial.prompt)
            check_base(artifact.record, model.base.config.name, base_fingerprint)
            values = resized(own, artifact.tensors)
        else:
            cause = f"initial.samples = {config.initial.samples}"
            batch = loader.first(config.initial.samples)
            examples = Examples(
                batch.source_ids_BS,
                batch.images_BCHW,
                batch.image_present_B,
                batch.decoder_ids_BT,
            )
            values = activated(model.base, own, examples, seed=config.seed)
        model.load_exported(values)
    except CheckpointError as error:
        raise ConfigError(f"{cause}: {error}") from error
