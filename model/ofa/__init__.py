"""OFA as a plain PyTorch module.

In reading order: config, vision, positions, bias, attention, encoder, cache, decoder, model; what a
frozen model spares: frozen, folded.
"""

from model.ofa.cache import DecoderCache
from model.ofa.config import PRESETS, OFAConfig, VocabLayout, nearest_preset
from model.ofa.encoder import EncoderOutput
from model.ofa.frozen import Savings
from model.ofa.model import OFA
from model.ofa.prompts import LayerAdapter, LayerPrompt, Prompts

__all__ = [
    "OFA",
    "PRESETS",
    "DecoderCache",
    "EncoderOutput",
    "LayerAdapter",
    "LayerPrompt",
    "OFAConfig",
    "Prompts",
    "Savings",
    "VocabLayout",
    "nearest_preset",
]
