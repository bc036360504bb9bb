"""Tuning methods, one file each, and the module that joins one to a base."""

from model.tuning.config import PrefixConfig, TuningConfig
from model.tuning.prefix import PrefixTuning
from model.tuning.tuned import TunedModel, build_tuned_model

__all__ = ["PrefixConfig", "PrefixTuning", "TunedModel", "TuningConfig", "build_tuned_model"]
