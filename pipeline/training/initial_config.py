"""Settings of the values that training starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.tuning.config import TuningConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InitialConfig:
    """What training starts from."""

    values: Literal["random", "prompt", "activations"] = "random"
    """`random` draws as `tuning` says; `prompt` continues from another prompt; `activations` takes
    keys and values that the base computes for training samples, plus the random draws."""
    prompt: str | None = None
    """With `prompt`: folder of a prompt artifact for the same base and method. A prompt of another
    length is cut, or filled up at random."""
    samples: int = 16
    """With `activations`: training samples whose positions the entries are chosen from."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if self.values == "prompt" and not self.prompt:
            raise ValueError("values = prompt needs the folder of a prompt artifact in prompt")
        if self.prompt is not None and self.values != "prompt":
            raise ValueError(f"prompt = {self.prompt!r} needs values = prompt, not {self.values}")

    def check(self, tuning: TuningConfig, zero_stage: int) -> None:
        """Refuses values that what is tuned cannot begin with.

        Raises:
            ConfigError: names the setting, and what it needs.
        """
        if self.values == "random":
            return
        methods = ["prefix", "adapter_prefix"]
        if self.values == "prompt":
            methods += ["adapter", "bitfit"]
        prefix = tuning.prefix
        needed = None
        if tuning.method not in methods:
            needed = f"tuning.method = {' or '.join(methods)}, not {tuning.method}"
        elif prefix.per_task:
            needed = "tuning.prefix.per_task = false: begin each prompt in a run of its own"
        elif prefix.projection_dim is not None and "prefix" in tuning.method:
            needed = (
                f"tuning.prefix.projection_dim = null, not {prefix.projection_dim}: an MLP cannot"
                " be given the values that it makes"
            )
        elif zero_stage == 3 and (self.values == "activations" or tuning.method == "bitfit"):
            needed = "engine.zero_stage below 3, where each rank has the whole base"
            if self.values == "activations":
                needed += "; or begin with the prompt that a run of one step there exports"
        if needed is not None:
            raise ConfigError(f"initial.values = {self.values}: needs {needed}")
