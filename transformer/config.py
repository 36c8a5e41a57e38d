"""Experiment configuration. Defaults are the paper's base model.

`option` declares each field: its default, the values that the paper reports for it, whether it affects the
result, and when it is read. `fidelity`, `result_hash` and the commands use these declarations. This module
rejects values that are invalid in every config. Names, such as that of a position scheme, are checked
elsewhere, against the dict that defines them.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from transformer.config_fields import (
    Declaration,
    Rule,
    Section,
    UserError,
    build_section,
    choose,
    declarations,
    from_text,
    option,
    unknown_key,
)

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "UNK",
    "DataConfig",
    "Declaration",
    "DecodeConfig",
    "ExperimentConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Rule",
    "Section",
    "TrainConfig",
    "UserError",
    "build_section",
    "check_key",
    "choose",
    "declarations",
    "difference",
    "flatten",
    "from_dict",
    "from_text",
    "option",
    "paper_peak",
    "result_hash",
    "to_dict",
    "unknown_key",
]

# Special tokens of every vocabulary, shared by the tokenizer, the model and the search.
PAD, BOS, EOS, UNK = 0, 1, 2, 3


def _translates(config: "ExperimentConfig") -> bool:
    return config.task == "translation"


def _classifies_images(config: "ExperimentConfig") -> bool:
    return config.task == "image_classification"


def _reads_text(config: "ExperimentConfig") -> bool:
    return not _classifies_images(config)


def _has_attention_layers(config: "ExperimentConfig") -> bool:
    return not config.model.kind.startswith("recurrent")


def _is_decoder_only(config: "ExperimentConfig") -> bool:
    return config.model.kind == "decoder_only"


def _has_encoder(config: "ExperimentConfig") -> bool:
    return not _is_decoder_only(config)


def _rotates(config: "ExperimentConfig") -> bool:
    return _has_attention_layers(config) and config.model.positions == "rope"


def _rotates_on_grid(config: "ExperimentConfig") -> bool:
    return _classifies_images(config) and config.model.positions == "rope_2d"


def _samples(config: "ExperimentConfig") -> bool:
    return _reads_text(config) and config.decode.sampling


def _may_use_mesh(config: "ExperimentConfig") -> bool:
    return config.train.parallelism in ("auto", "mesh")


def _has_beam(config: "ExperimentConfig") -> bool:
    return config.decode.beam_size > 1 and not config.decode.sampling


_AS_DEEP = Rule("num_layers", lambda config: config.model.num_layers)
_AS_MANY = Rule("num_heads", lambda config: config.model.num_heads)
_AS_WIDE = Rule("d_model / num_heads", lambda config: config.model.d_model / config.model.num_heads)
_PEAK = Rule("(d_model * warmup_steps)^-0.5", lambda config: paper_peak(config))
_CHANGES_NOTHING = "changes no result"
_CHANGES_ROUNDING = "changes rounding only"
_READ_BY_DEPARTURES = "read only by values that are departures already"


def paper_peak(config: "ExperimentConfig") -> float:
    """Returns the learning rate at the end of the warm-up (equation 3): (d_model * warmup_steps)^-0.5."""
    return (config.model.d_model * config.optimizer.warmup_steps) ** -0.5


# Declares a field whose default `result_hash` leaves out, so that the runs in docs/studies keep their names.
added_option = functools.partial(option, hash_default=False)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The model (paper, section 3; symbols as in Table 3)."""

    section: ClassVar[str] = "model"

    # A name in model.KINDS.
    kind: str = option("transformer", paper={"section 3.1": ["transformer"]})
    # N, the number of layers of the encoder and of the decoder.
    num_layers: int = option(
        6,
        paper={"section 3.1": [6], "Table 3, row C": [2, 4, 8]},
        read_if=lambda config: (
            (_reads_text(config) and config.model.decoder_layers is None)
            or (_has_encoder(config) and config.model.encoder_layers is None)
        ),
    )
    # Depths of the encoder and of the decoder; if None, num_layers.
    encoder_layers: int | None = option(
        None, paper={"section 3.1": [_AS_DEEP, 6], "Table 3, row C": [2, 4, 8]}, read_if=_has_encoder
    )
    decoder_layers: int | None = option(
        None, paper={"section 3.1": [_AS_DEEP, 6], "Table 3, row C": [2, 4, 8]}, read_if=_reads_text
    )
    d_model: int = option(
        512, paper={"section 3.1": [512], "Table 3, row C": [256], "Table 3, row C and big": [1_024]}
    )
    d_ff: int = option(
        2_048,
        paper={"section 3.3": [2_048], "Table 3, row C": [1_024], "Table 3, row C and big": [4_096]},
        read_if=_has_attention_layers,
    )
    # h, the number of attention heads.
    num_heads: int = option(
        8, paper={"section 3.2.2": [8], "Table 3, row A": [1, 4, 16, 32]}, read_if=_has_attention_layers
    )
    # Number of key and value heads, each shared by num_heads / num_kv_heads query heads; if None, num_heads.
    num_kv_heads: int | None = added_option(
        None, paper={"section 3.2.2": [_AS_MANY]}, read_if=_has_attention_layers
    )
    # Width of the queries and keys of a head; if None, d_model / num_heads.
    d_k: int | None = option(
        None,
        paper={"section 3.2.2": [_AS_WIDE], "Table 3, row B": [16, 32]},
        read_if=_has_attention_layers,
    )
    # Width of the values of a head; if None, d_model / num_heads.
    d_v: int | None = option(None, paper={"section 3.2.2": [_AS_WIDE]}, read_if=_has_attention_layers)
    # Whether queries and keys are normalized.
    qk_norm: bool = added_option(False, paper={"equation 1": [False]}, read_if=_has_attention_layers)
    # Bound of the attention logits; if None, they have no bound.
    logit_cap: float | None = added_option(
        None, paper={"equation 1": [Rule("no bound")]}, read_if=_has_attention_layers
    )
    # Number of positions that self-attention sees in a direction, its own included; if None, all positions.
    attention_window: int | None = added_option(
        None,
        paper={"section 3.2.3": [Rule("all positions")]},
        read_if=(_has_attention_layers, _reads_text),
    )
    # Whether the heads are multiplied by a sigmoid gate before W^O.
    attention_gate: bool = added_option(
        False, paper={"section 3.2.2": [False]}, read_if=_has_attention_layers
    )
    # P_drop, the probability that an activation is dropped.
    dropout_rate: float = option(
        0.1, paper={"section 5.4": [0.1], "Table 3, row D": [0.0, 0.2], "Table 3, big": [0.3]}
    )
    # A name in model.dropout.DROPOUT_SITES.
    dropout_sites: str = option(
        "paper",
        paper={"section 5.4": ["paper"]},
        read_if=(_has_attention_layers, lambda config: config.model.dropout_rate > 0),
    )
    # A name in model.positions.POSITIONS.
    positions: str = option(
        "sinusoidal",
        paper={"section 3.5": ["sinusoidal"], "Table 3, row E": ["learned"]},
        read_if=_has_attention_layers,
    )
    # Rows of a learned position table. `overflow` applies from this position on, or from the length of the
    # longest training sequence on if that is smaller.
    max_positions: int = option(
        1_024,
        not_in_paper="the paper does not say how many positions it learns; sinusoids have no end",
        read_if=(_has_attention_layers, _reads_text),
    )
    # Behavior beyond the longest sequence trained on: error, clamp, zero or extrapolate; if None, the default
    # of the position scheme.
    overflow: str | None = option(
        None,
        paper={"section 3.5": [Rule("sinusoids continue"), "extrapolate"]},
        changeable=True,
        read_if=(_has_attention_layers, _reads_text),
        departs_if=lambda config: config.model.overflow != "error",  # an error changes no result
    )
    # Largest distance that `relative` and `t5_bias` distinguish; if None, the default of the position scheme.
    max_distance: int | None = option(
        None, not_in_paper=_READ_BY_DEPARTURES, read_if=(_has_attention_layers, _reads_text)
    )
    # Base of the wavelengths of `rope` and `rope_2d`.
    rope_base: float = added_option(
        10_000.0,
        not_in_paper=_READ_BY_DEPARTURES,
        read_if=lambda config: _rotates(config) or _rotates_on_grid(config),
    )
    # Share of the channels of a head that `rope` rotates.
    rope_fraction: float = added_option(1.0, not_in_paper=_READ_BY_DEPARTURES, read_if=_rotates)
    # A name in model.layers.NORMS.
    norm: str = option(
        "layer_norm",
        paper={"section 3.1": ["layer_norm"]},
        read_if=(_has_attention_layers, lambda config: config.model.residual != "rezero"),
    )
    # A name in model.residual.RESIDUALS.
    residual: str = option("post_norm", paper={"section 3.1": ["post_norm"]}, read_if=_has_attention_layers)
    # A name in model.layers.FEED_FORWARDS.
    feed_forward: str = option("relu", paper={"section 3.3": ["relu"]}, read_if=_has_attention_layers)
    # Whether a gated feed-forward layer has width 2/3 d_ff and thus as many parameters as an ungated layer.
    equal_parameters: bool = option(
        False,
        not_in_paper=_READ_BY_DEPARTURES,
        read_if=(_has_attention_layers, lambda config: config.model.feed_forward not in ("relu", "gelu")),
    )
    # Visibility of source tokens in a decoder-only model: causal, or bidirectional within the source.
    prefix: str = added_option(
        "causal", not_in_paper=_READ_BY_DEPARTURES, read_if=(_is_decoder_only, _translates)
    )
    # A name in model.embedding.EMBEDDINGS; selects which embedding matrices are shared.
    embeddings: str = option("three_way", paper={"section 3.4": ["three_way"]}, read_if=_reads_text)
    # Height and width of the patches of an image, in pixels.
    patch_size: int = added_option(4, not_in_paper=_READ_BY_DEPARTURES, read_if=_classifies_images)
    # A name in model.image_classifier.POOLINGS: what the classes of an image are predicted from.
    pooling: str = added_option("class_token", not_in_paper=_READ_BY_DEPARTURES, read_if=_classifies_images)
    # A name in model.recurrent.CELLS, for recurrent kinds.
    cell: str = option(
        "lstm",
        not_in_paper=_READ_BY_DEPARTURES,
        read_if=lambda config: not _has_attention_layers(config),
    )
    # Whether attention uses jax.nn.dot_product_attention where the model allows it.
    fused_attention: bool = option(
        False,
        not_in_paper=_CHANGES_ROUNDING,
        affects_result=False,
        read_if=_has_attention_layers,
        changeable=True,
    )
    # A name in model.block.REMAT: what the backward pass computes again to save memory.
    remat: str = option(
        "none", not_in_paper=_CHANGES_ROUNDING, affects_result=False, read_if=_has_attention_layers
    )
    # Whether the layers of a stack share one compiled block, which shortens compilation.
    scan_layers: bool = option(
        False, not_in_paper=_CHANGES_ROUNDING, affects_result=False, read_if=_has_attention_layers
    )
    # Type of the activations. Parameters, softmax and the statistics of norms stay float32.
    dtype: str = option("float32", paper={"section 6.1: single precision": ["float32"]}, changeable=True)

    def __post_init__(self):
        self._at_least(1, "num_layers", "encoder_layers", "decoder_layers", "d_model", "d_ff", "num_heads")
        self._at_least(1, "d_k", "d_v", "max_distance", "num_kv_heads", "attention_window", "patch_size")
        self._at_least(2, "max_positions")  # a token and EOS
        self._fraction("dropout_rate")
        self._require(
            "num_kv_heads",
            self.num_heads % self.key_value_heads == 0,
            f"a divisor of model.num_heads ({self.num_heads})",
        )
        self._require("logit_cap", self.logit_cap is None or self.logit_cap > 0, "above 0")
        self._require("rope_base", self.rope_base > 1, "above 1")
        self._require("rope_fraction", 0 < self.rope_fraction <= 1, "above 0 and at most 1")
        self._require(
            "d_model",
            self.kind.startswith("recurrent")
            or self.d_model % self.num_heads == 0
            or None not in (self.d_k, self.d_v),
            f"a multiple of model.num_heads ({self.num_heads}) unless model.d_k and model.d_v are set",
        )
        self._require("prefix", self.prefix in ("causal", "bidirectional"), "causal or bidirectional")
        self._require("dtype", self.dtype in ("float32", "bfloat16"), "float32 or bfloat16")

    @property
    def encoder_depth(self) -> int:
        """Number of encoder layers."""
        return self.encoder_layers or self.num_layers

    @property
    def decoder_depth(self) -> int:
        """Number of decoder layers."""
        return self.decoder_layers or self.num_layers

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads: num_kv_heads or its default."""
        return self.num_kv_heads or self.num_heads

    @property
    def key_width(self) -> int:
        """Width of the queries and keys of a head: d_k or its default."""
        return self.d_k or self.d_model // self.num_heads

    @property
    def value_width(self) -> int:
        """Width of the values of a head: d_v or its default."""
        return self.d_v or self.d_model // self.num_heads


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """The text and its tokens (paper, section 5.1), or the images."""

    section: ClassVar[str] = "data"

    # A name in data.builders.BUILDERS or data.image_sets.IMAGE_SETS, or a TFDS set.
    name: str = option(
        "wmt14_translate/de-en",
        paper={"section 5.1": ["wmt14_translate/de-en", "wmt14_translate/fr-en"]},
    )
    # Language translated from.
    source: str = option("en", paper={"section 5.1": ["en"]}, read_if=_translates)
    # Language translated to, or language of the documents.
    target: str = option("de", paper={"section 5.1": ["de", "fr"]}, read_if=_reads_text)
    # Folder for prepared data; if None, the default folder of TFDS.
    data_dir: str | None = option(None, not_in_paper="a path", affects_result=False)
    # Options of the data set, checked against the dataclass that declares them.
    options: Mapping[str, Any] = option(
        default_factory=dict, not_in_paper="declared by each builder for itself"
    )
    # SentencePiece model type: bpe, unigram or char.
    tokenizer: str = option("bpe", paper={"section 5.1": ["bpe"]}, read_if=_reads_text)
    # Size of the vocabulary, which both languages of translation share; special tokens included.
    vocab_size: int = option(37_000, paper={"section 5.1": [37_000, 32_000]}, read_if=_reads_text)
    # Whether the vocabulary has 256 byte tokens, which encode characters without a token of their own.
    byte_fallback: bool = option(False, paper={"section 5.1": [False]}, read_if=_reads_text)
    # Tokens per packed row. Training pairs with a longer side are dropped, and the log says how many.
    row_length: int = option(
        256, not_in_paper="the paper does not say which pairs are too long to train on", read_if=_reads_text
    )
    # Processes that assemble batches; if 0, a thread of the training process assembles them.
    workers: int = option(0, not_in_paper=_CHANGES_NOTHING, affects_result=False)

    def __post_init__(self):
        self._at_least(8, "vocab_size")
        self._at_least(2, "row_length")
        self._at_least(0, "workers")
        self._require("tokenizer", self.tokenizer in ("bpe", "unigram", "char"), "bpe, unigram or char")
        for field in ("source", "target"):  # names become parts of paths
            is_code = re.fullmatch(r"\w[\w.-]{0,31}", getattr(self, field))
            self._require(field, is_code is not None, "a language code, such as de or zh_TW")
        self._require("data_dir", "://" not in (self.data_dir or ""), "a path on this machine")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """The optimizer and its learning rate (paper, section 5.3)."""

    section: ClassVar[str] = "optimizer"

    # A name in training.optimizers.OPTIMIZERS.
    name: str = option("adam", paper={"section 5.3": ["adam"]})
    # A name in training.optimizers.SCHEDULES.
    schedule: str = option("paper", paper={"equation 3": ["paper"]})
    # Learning rate at the peak; if None, (d_model * warmup_steps)^-0.5.
    learning_rate: float | None = option(None, paper={"equation 3": [_PEAK]})
    warmup_steps: int = option(4_000, paper={"section 5.3": [4_000]})
    # Steps of the final decay of `wsd`; if None, a tenth of train.steps.
    decay_steps: int | None = option(
        None,
        not_in_paper=_READ_BY_DEPARTURES,
        read_if=lambda config: config.optimizer.schedule not in ("paper", "constant", "cosine"),
    )
    # Learning rate after the last step of `cosine` and `wsd`, as a fraction of the peak.
    final_fraction: float = added_option(
        0.0,
        not_in_paper=_READ_BY_DEPARTURES,
        read_if=lambda config: config.optimizer.schedule not in ("paper", "constant"),
    )
    beta1: float = option(0.9, paper={"section 5.3": [0.9]})  # with sgd, the momentum
    beta2: float = option(
        0.98, paper={"section 5.3": [0.98]}, read_if=lambda config: config.optimizer.name != "sgd"
    )
    epsilon: float = option(
        1e-9, paper={"section 5.3": [1e-9]}, read_if=lambda config: config.optimizer.name != "sgd"
    )
    # Decoupled decay of matrices only (Loshchilov and Hutter 2019), for adamw and muon.
    weight_decay: float = option(
        0.0,
        paper={"section 5.3": [0.0]},
        read_if=lambda config: config.optimizer.name not in ("adam", "sgd"),
    )
    # Largest global norm of the gradient of the mean loss; if None, no clipping.
    clip_norm: float | None = option(None, paper={"section 5.3": [Rule("no clipping")]})
    # Largest number of consecutive updates that may be skipped because their gradient is not finite.
    skip_nonfinite: int = option(0, not_in_paper="has an effect only if training would fail otherwise")

    def __post_init__(self):
        self._at_least(1, "warmup_steps", "decay_steps")
        self._at_least(0, "skip_nonfinite")
        self._fraction("beta1", "beta2", "final_fraction")
        for field in ("epsilon", "learning_rate", "clip_norm"):
            value = getattr(self, field)
            self._require(field, value is None or value > 0, "above 0")
        self._require("weight_decay", self.weight_decay >= 0, "at least 0")
        self._require(
            "weight_decay",
            self.weight_decay == 0 or self.name not in ("adam", "sgd"),
            f"0 with optimizer.name={self.name}; only adamw and muon decay weights",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Training length, batches, logging and checkpoints (paper, sections 5.1, 5.2 and 5.4)."""

    section: ClassVar[str] = "train"

    seed: int = option(0, not_in_paper="the paper reports no seed")
    steps: int = option(100_000, paper={"section 5.2": [100_000, 300_000]})
    # Target tokens per step, on average, padding not counted.
    batch_tokens: int = option(25_000, paper={"section 5.1": [25_000]}, read_if=_reads_text)
    # Images per step, for image classification, and images per batch of a validation.
    batch_size: int = added_option(64, not_in_paper=_READ_BY_DEPARTURES, read_if=_classifies_images)
    # Number of parts into which a batch is split to save memory (gradient accumulation).
    accumulation: int = option(1, not_in_paper=_CHANGES_ROUNDING)
    # eps_ls, the weight of the uniform distribution in the target distribution.
    label_smoothing: float = option(0.1, paper={"section 5.4": [0.1], "Table 3, row D": [0.0, 0.2]})
    # Whether a decoder-only model is also trained to predict the source tokens of a translation.
    loss_on_source: bool = added_option(
        False, not_in_paper=_READ_BY_DEPARTURES, read_if=(_is_decoder_only, _translates)
    )
    # Coefficient of log(Z)^2 in the loss, where Z is the normalizer of the softmax over the vocabulary.
    z_loss: float = added_option(0.0, paper={"section 5.4": [0.0]})
    # A name in training.parallelism.PARALLELISMS.
    parallelism: str = option("auto", not_in_paper=_CHANGES_ROUNDING, affects_result=False)
    # Sizes of two mesh axes: fsdp splits rows, weights and optimizer state; tensor splits heads, hidden units
    # and the vocabulary. The rest of the devices form the axis data, which splits rows.
    fsdp: int = option(1, not_in_paper=_CHANGES_ROUNDING, affects_result=False, read_if=_may_use_mesh)
    tensor: int = option(1, not_in_paper=_CHANGES_ROUNDING, affects_result=False, read_if=_may_use_mesh)
    log_every: int = option(100, not_in_paper=_CHANGES_NOTHING, affects_result=False)  # in steps
    # Whether to log the gradient norm of each layer and the entropy of its attention weights.
    diagnostics: bool = option(False, not_in_paper=_CHANGES_NOTHING, affects_result=False)
    # Steps between validations; each writes a checkpoint.
    validate_every: int = option(
        1_000,
        paper={"sections 5.2 and 6.1: every 10 minutes": [1_500, 600]},
        departs_if=lambda config: config.decode.average_last > 1,
    )
    # Training ends once the validation loss, without label smoothing, has not fallen in this many consecutive
    # validations; if None, training never ends early.
    patience: int | None = option(None, paper={"section 5.2": [Rule("no early end")]})
    # Reaction if training has diverged although its losses are finite: stop or warn.
    on_divergence: str = option("stop", not_in_paper=_CHANGES_NOTHING, affects_result=False)
    # Number of latest checkpoints to keep. The best checkpoint is kept, too.
    keep_last: int = option(
        10, not_in_paper="decode.average_last selects the checkpoints that are used", affects_result=False
    )

    def __post_init__(self):
        self._seed()
        self._at_least(1, "steps", "batch_tokens", "accumulation", "log_every", "validate_every", "keep_last")
        self._at_least(1, "patience", "fsdp", "tensor", "batch_size")
        self._fraction("label_smoothing")
        self._require("z_loss", self.z_loss >= 0, "at least 0")
        self._require("on_divergence", self.on_divergence in ("stop", "warn"), "stop or warn")


# Declares a field of the search for texts, which may be changed after training.
search_option = functools.partial(option, changeable=True, read_if=_reads_text)


@dataclasses.dataclass(frozen=True)
class DecodeConfig(Section):
    """The search for translations (paper, section 6.1). Lengths are in tokens."""

    section: ClassVar[str] = "decode"

    # Hypotheses per sentence; 1 is greedy search.
    beam_size: int = search_option(
        4, paper={"section 6.1": [4]}, read_if=(_reads_text, lambda config: not config.decode.sampling)
    )
    # A name in decoding.length_penalty.PENALTIES.
    penalty: str = search_option("wu", paper={"section 6.1": ["wu"]}, departs_if=_has_beam)
    # alpha, the exponent of the penalty.
    length_penalty: float = search_option(0.6, paper={"section 6.1": [0.6]}, departs_if=_has_beam)
    # An output has at most this many tokens more than the input.
    max_extra_length: int = search_option(50, paper={"section 6.1": [50]})
    # Largest number of output tokens, EOS included; if None, only max_extra_length limits the output.
    max_output_length: int | None = search_option(None, paper={"section 6.1": [Rule("input length + 50")]})
    # Smallest number of output tokens, EOS included.
    min_output_length: int = search_option(1, paper={"section 6.1": [Rule("no minimum"), 1]})
    # Whether outputs are sampled; otherwise the most probable outputs are searched for.
    sampling: bool = search_option(False, paper={"section 6.1": [False]})
    temperature: float = search_option(1.0, not_in_paper=_READ_BY_DEPARTURES, read_if=_samples)
    # Number of most probable tokens to sample from; if None, all tokens.
    top_k: int | None = search_option(None, not_in_paper=_READ_BY_DEPARTURES, read_if=_samples)
    # Total probability of the most probable tokens to sample from (nucleus); if None, all tokens.
    top_p: float | None = search_option(None, not_in_paper=_READ_BY_DEPARTURES, read_if=_samples)
    seed: int = search_option(0, not_in_paper=_READ_BY_DEPARTURES, read_if=_samples)
    # Number of checkpoints whose weights are averaged; Table 2 uses 5 (base) or 20 (big).
    average_last: int = option(1, paper={"section 6.1": [5, 20], "section 6.2": [1]}, changeable=True)
    # Source tokens per batch of a search (on each device) or of a validation, padding included.
    batch_tokens: int = search_option(1_024, not_in_paper=_CHANGES_ROUNDING)
    # Longest source that is translated whole, in tokens, EOS included. A longer source is split.
    max_source_length: int = search_option(
        1_024, not_in_paper="the paper does not say what it does with long sources"
    )

    def __post_init__(self):
        self._at_least(1, "beam_size", "max_extra_length", "average_last", "batch_tokens")
        self._at_least(1, "min_output_length", "max_output_length", "top_k")
        self._at_least(2, "max_source_length")
        self._seed()
        self._at_least(0, "length_penalty")
        self._require("temperature", self.temperature > 0, "above 0")
        self._require("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        for field, default in (("temperature", 1.0), ("top_k", None), ("top_p", None), ("seed", 0)):
            self._require(
                field,
                self.sampling or getattr(self, field) == default,
                f"{default!r} unless decode.sampling is true",
            )
        self._require(
            "max_output_length",
            self.max_output_length is None or self.max_output_length >= self.min_output_length,
            f"at least decode.min_output_length ({self.min_output_length})",
        )


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """The complete config of a run."""

    # A name in tasks.TASKS.
    task: str = option("translation", paper={"section 6.1": ["translation"]})
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()

    def __post_init__(self):
        if self.task == "translation" and self.data.source == self.data.target:
            raise UserError(
                f"data.target is {self.data.target!r}; it must be a different language from data.source"
            )
        if self.decode.average_last > self.train.keep_last:
            raise UserError(
                f"decode.average_last is {self.decode.average_last}; "
                f"it must be at most train.keep_last ({self.train.keep_last})"
            )


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Returns a config as plain nested dicts, for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """Builds and validates a config; missing keys take their defaults.

    Raises:
      UserError: an unknown key, or a value of the wrong type or range.
    """
    return build_section(ExperimentConfig, values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one dict with dotted keys. An empty dict has no key in the result."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def check_key(key: str) -> None:
    """Checks that a dotted key names a config field. Keys of `data.options` are checked elsewhere.

    Raises:
      UserError: there is no such field, or the key names a group of fields.
    """
    if key.startswith("data.options."):
        return
    known = [*declarations(ExperimentConfig), "data.options.NAME"]
    known.remove("data.options")
    if key in known:
        return
    if members := [name for name in known if name.startswith(f"{key}.")]:
        raise UserError(f"{key} is a group of fields; name one of its fields, such as {members[0]}")
    raise unknown_key(key, known)


def result_hash(config: ExperimentConfig, options_type: type | None = None) -> str:
    """Returns the SHA-256 digest of all fields that affect the result; see `Declaration.hash_default`.

    The names of run folders contain its first 8 digits.

    Args:
      config: a config with complete `data.options`, as `tasks.resolve` returns it.
      options_type: the dataclass that declares the options of the data set; if None, every option affects
        the result.
    """
    declared, defaults = declarations(ExperimentConfig), flatten(to_dict(ExperimentConfig()))
    if options_type is not None:
        declared |= declarations(options_type, "data.options.")

    def is_relevant(key, value):
        declaration = declared.get(key)
        if declaration is None:
            return True
        return declaration.affects_result and (declaration.hash_default or value != defaults[key])

    relevant = {key: value for key, value in flatten(to_dict(config)).items() if is_relevant(key, value)}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def difference(
    stored: ExperimentConfig,
    given: ExperimentConfig,
    is_compared: Callable[[str], bool] = lambda key: True,
) -> str:
    """Describes the first three fields in which two configs differ, and counts the remaining ones.

    Args:
      stored: the config of a run.
      given: the config that is compared with it.
      is_compared: whether a field is compared, by its key, such as "model.d_model".
    """
    old, new = flatten(to_dict(stored)), flatten(to_dict(given))
    fields = [
        f"{key} is {old.get(key)!r} there, {new.get(key)!r} here"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and is_compared(key)
    ]
    return "; ".join(fields[:3]) + (f"; and {len(fields) - 3} more" if len(fields) > 3 else "")
