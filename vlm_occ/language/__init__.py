"""The language side: tokens, splice, backbones, the embedded default."""
