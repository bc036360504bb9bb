"""OFA as a plain PyTorch module.

In reading order: config, vision, positions, attention, encoder, decoder, model.
"""

from model.ofa.config import PRESETS, OFAConfig, VocabLayout
from model.ofa.decoder import DecoderCache
from model.ofa.encoder import EncoderOutput
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
    "VocabLayout",
]
