"""Does translation need an encoder, at equal FLOPs, on Multi30k?

As configs/sweeps/decoder_only_flops.py, on image captions instead of number words. The baseline is the recipe
of configs/sweeps/multi30k.py:cpu, whose stored runs can be copied into the folder of this study.

    python -m experiments.launch --sweep=configs/sweeps/decoder_only_multi30k.py:cpu \\
        --root=runs/decoder_only_multi30k --seeds=5
"""

CONFIG = "configs/multi30k.py"
VARIANTS = {
    "encoder_decoder": {},
    "causal": {"model.kind": "decoder_only", "model.num_layers": 8},
    "bidirectional": {"model.kind": "decoder_only", "model.num_layers": 8, "model.prefix": "bidirectional"},
}
SPLITS = ("test",)
METRICS = ("bleu_tok", "chrf", "nll")
EQUAL = "flops"
