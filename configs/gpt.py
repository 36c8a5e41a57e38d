"""Language models in the style of GPT-2 (Radford et al. 2019), in the two sizes of nanoGPT.

    python -m experiments.train --config=configs/gpt.py --workdir=runs/gpt
    python -m experiments.train --config=configs/gpt.py:shakespeare,char,cpu --workdir=runs/shakespeare \\
        --config.data.options.file=input.txt

Arguments: `python_stdlib` (the default) or `shakespeare` chooses the text; `bpe` (the default) or `char`
chooses the tokens; `cpu` (the default) or `gpu` chooses the size of the model and of the training; `smoke` is
a trial run. `shakespeare` needs a file, whose first 90 % of characters are for training.

docs/language_models.md has scores of `cpu` only. The peak learning rate is 2e-3 in `cpu` and `gpu`, and 1e-3
in nanoGPT's two settings.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "") -> ConfigDict:
    config = base.defaults()
    config.task = "language_modeling"
    config.model.update(
        kind="decoder_only",
        positions="learned",
        residual="pre_norm",
        feed_forward="gelu",
        dropout_sites="all",
    )
    config.data.target = "en"
    config.optimizer.update(
        name="adamw", schedule="cosine", learning_rate=2e-3, final_fraction=0.1, beta2=0.99, weight_decay=0.1
    )
    config.optimizer.clip_norm = 1.0
    config.train.update(label_smoothing=0.0, log_every=50, validate_every=250)
    config.decode.update(sampling=True)
    _python_stdlib(config)
    _bpe(config)
    _cpu(config)
    words = {
        "python_stdlib": _python_stdlib,
        "shakespeare": _shakespeare,
        "bpe": _bpe,
        "char": _char,
        "cpu": _cpu,
        "gpu": _gpu,
        "smoke": _smoke,
    }
    alternatives = (("python_stdlib", "shakespeare"), ("bpe", "char"), ("cpu", "gpu"))
    return base.with_arguments(config, argument, words, alternatives)


def _python_stdlib(config: ConfigDict) -> None:
    config.data.update(name="python_stdlib", options={})


def _shakespeare(config: ConfigDict) -> None:
    config.data.update(name="text_files", options={"file": None})


def _bpe(config: ConfigDict) -> None:
    config.data.update(tokenizer="bpe", vocab_size=2_048, byte_fallback=True)


def _char(config: ConfigDict) -> None:
    config.data.update(tokenizer="char", vocab_size=69, byte_fallback=False)  # 65 characters in Shakespeare


def _cpu(config: ConfigDict) -> None:
    config.model.update(num_layers=4, num_heads=4, d_model=128, d_ff=512, max_positions=64, dropout_rate=0.0)
    config.data.row_length = 64
    config.optimizer.warmup_steps = 100
    config.train.update(steps=2_000, batch_tokens=12 * 64)


def _gpu(config: ConfigDict) -> None:
    config.model.update(
        num_layers=6, num_heads=6, d_model=384, d_ff=1_536, max_positions=256, dropout_rate=0.2
    )
    config.data.row_length = 256
    config.optimizer.warmup_steps = 100
    config.train.update(steps=5_000, batch_tokens=64 * 256)


def _smoke(config: ConfigDict) -> None:
    # Of the 512 tokens, 256 are bytes, and the standard library has over 160 characters.
    vocab_size = 512 if config.data.tokenizer == "bpe" else config.data.vocab_size
    base.smoke(config)
    config.data.vocab_size = vocab_size
