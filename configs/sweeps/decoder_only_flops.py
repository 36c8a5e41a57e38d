"""Does translation need an encoder, at equal FLOPs?

As configs/sweeps/decoder_only.py, but the number of training steps makes the FLOPs of all variants equal.
"""

from configs.sweeps import decoder_only

CONFIG, VARIANTS = decoder_only.CONFIG, decoder_only.VARIANTS
SPLITS, METRICS, PRIMARY = decoder_only.SPLITS, decoder_only.METRICS, decoder_only.PRIMARY
EQUAL = "flops"
