"""OFA as a plain PyTorch module.

In reading order: config, vision, positions, attention, encoder, decoder, model.
"""

from model.ofa.config import PRESETS, OFAConfig, VocabLayout, nearest_preset
from model.ofa.decoder import DecoderCache
from model.ofa.encoder import EncoderOutput
from model.ofa.model import OFA
from model.ofa.prompts import LayerPrompt, Prompts

__all__ = [
    "OFA",
    "PRESETS",
    "DecoderCache",
    "EncoderOutput",
    "LayerPrompt",
    "OFAConfig",
    "Prompts",
    "VocabLayout",
    "nearest_preset",
]
