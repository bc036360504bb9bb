"""Entry points: one stage a file, each reached by ``prefixworks`` or ``python -m jobs.<stage>``."""
