"""Does translation need an encoder, at equal parameters?

A decoder-only model reads source and target as one sequence (Liu et al. 2018). It has four layers, like the
two stacks of the baseline together, and the width of the feed-forward networks that makes the parameters
equal. Raffel et al. 2020 find the encoder-decoder better at equal computation, and a bidirectional prefix
better than a causal one.

    python -m experiments.launch --sweep=configs/sweeps/decoder_only.py --root=runs/decoder_only --seeds=5
    python -m experiments.launch --sweep=configs/sweeps/decoder_only_flops.py --root=runs/flops --seeds=5
"""

CONFIG = "configs/number_words.py"
VARIANTS = {
    "encoder_decoder": {},
    "causal": {"model.kind": "decoder_only", "model.num_layers": 4},
    "bidirectional": {"model.kind": "decoder_only", "model.num_layers": 4, "model.prefix": "bidirectional"},
    "causal_both_sides": {
        "model.kind": "decoder_only",
        "model.num_layers": 4,
        "train.loss_on_source": True,
    },
}
SPLITS = ("test", "test_long")
METRICS = ("exact_match", "chrf", "nll")
PRIMARY = ("exact_match", "test")
EQUAL = "parameters"
