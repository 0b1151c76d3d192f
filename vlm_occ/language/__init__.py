"""The language side: tokens, splice, backbones, the embedded default."""

from vlm_occ.weights import hide_broken_torchvision

hide_broken_torchvision()  # before anything imports transformers, which would break with it
