"""Tuning methods, one file each behind one protocol, and the module that joins one to a base.

In reading order: config, method (the protocol), prefix, prefix_bank (several at once), adapter,
adapter_prefix, bitfit, finetune, tuned.
"""

from model.tuning.config import AdapterConfig, BitfitConfig, PrefixConfig, TuningConfig
from model.tuning.method import TuningMethod
from model.tuning.prefix import PrefixTuning
from model.tuning.tuned import TunedModel, build_tuned_model, leaves_base_alone

__all__ = [
    "AdapterConfig",
    "BitfitConfig",
    "PrefixConfig",
    "PrefixTuning",
    "TunedModel",
    "TuningConfig",
    "TuningMethod",
    "build_tuned_model",
    "leaves_base_alone",
]
