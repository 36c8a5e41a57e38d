"""Config fields of the model."""

import dataclasses
from typing import ClassVar

from transformer.config.conditions import (
    CHANGES_ROUNDING,
    READ_BY_DEPARTURES,
    classifies_images,
    has_attention_layers,
    has_encoder,
    is_decoder_only,
    reads_text,
    rotates,
    rotates_on_grid,
    translates,
)
from transformer.config.fields import Rule, Section, added_option, option

_AS_DEEP = Rule("num_layers", lambda config: config.model.num_layers)
_AS_MANY = Rule("num_heads", lambda config: config.model.num_heads)
_AS_WIDE = Rule("d_model / num_heads", lambda config: config.model.d_model / config.model.num_heads)


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
            (reads_text(config) and config.model.decoder_layers is None)
            or (has_encoder(config) and config.model.encoder_layers is None)
        ),
    )
    # Depths of the encoder and of the decoder; if None, num_layers.
    encoder_layers: int | None = option(
        None, paper={"section 3.1": [_AS_DEEP, 6], "Table 3, row C": [2, 4, 8]}, read_if=has_encoder
    )
    decoder_layers: int | None = option(
        None, paper={"section 3.1": [_AS_DEEP, 6], "Table 3, row C": [2, 4, 8]}, read_if=reads_text
    )
    d_model: int = option(
        512, paper={"section 3.1": [512], "Table 3, row C": [256], "Table 3, row C and big": [1_024]}
    )
    d_ff: int = option(
        2_048,
        paper={"section 3.3": [2_048], "Table 3, row C": [1_024], "Table 3, row C and big": [4_096]},
        read_if=has_attention_layers,
    )
    # h, the number of attention heads.
    num_heads: int = option(
        8, paper={"section 3.2.2": [8], "Table 3, row A": [1, 4, 16, 32]}, read_if=has_attention_layers
    )
    # Number of key and value heads, each shared by num_heads / num_kv_heads query heads; if None, num_heads.
    num_kv_heads: int | None = added_option(
        None, paper={"section 3.2.2": [_AS_MANY]}, read_if=has_attention_layers
    )
    # Width of the queries and keys of a head; if None, d_model / num_heads.
    d_k: int | None = option(
        None,
        paper={"section 3.2.2": [_AS_WIDE], "Table 3, row B": [16, 32]},
        read_if=has_attention_layers,
    )
    # Width of the values of a head; if None, d_model / num_heads.
    d_v: int | None = option(None, paper={"section 3.2.2": [_AS_WIDE]}, read_if=has_attention_layers)
    # Whether queries and keys are normalized.
    qk_norm: bool = added_option(False, paper={"equation 1": [False]}, read_if=has_attention_layers)
    # Bound of the attention logits; if None, they have no bound.
    logit_cap: float | None = added_option(
        None, paper={"equation 1": [Rule("no bound")]}, read_if=has_attention_layers
    )
    # Number of positions that self-attention sees in a direction, its own included; if None, all positions.
    attention_window: int | None = added_option(
        None,
        paper={"section 3.2.3": [Rule("all positions")]},
        read_if=(has_attention_layers, reads_text),
    )
    # Whether the heads are multiplied by a sigmoid gate before W^O.
    attention_gate: bool = added_option(False, paper={"section 3.2.2": [False]}, read_if=has_attention_layers)
    # P_drop, the probability that an activation is dropped.
    dropout_rate: float = option(
        0.1, paper={"section 5.4": [0.1], "Table 3, row D": [0.0, 0.2], "Table 3, big": [0.3]}
    )
    # A name in model.dropout.DROPOUT_SITES.
    dropout_sites: str = option(
        "paper",
        paper={"section 5.4": ["paper"]},
        read_if=(has_attention_layers, lambda config: config.model.dropout_rate > 0),
    )
    # A name in model.positions.POSITIONS.
    positions: str = option(
        "sinusoidal",
        paper={"section 3.5": ["sinusoidal"], "Table 3, row E": ["learned"]},
        read_if=has_attention_layers,
    )
    # Rows of a learned position table. `overflow` applies from this position on, or from the length of the
    # longest training sequence on if that is smaller.
    max_positions: int = option(
        1_024,
        not_in_paper="the paper does not say how many positions it learns; sinusoids have no end",
        read_if=(has_attention_layers, reads_text),
    )
    # Behavior beyond the longest sequence trained on: error, clamp, zero or extrapolate; if None, the default
    # of the position scheme.
    overflow: str | None = option(
        None,
        paper={"section 3.5": [Rule("sinusoids continue"), "extrapolate"]},
        changeable=True,
        read_if=(has_attention_layers, reads_text),
        departs_if=lambda config: config.model.overflow != "error",  # an error changes no result
    )
    # Largest distance that `relative` and `t5_bias` distinguish; if None, the default of the position scheme.
    max_distance: int | None = option(
        None, not_in_paper=READ_BY_DEPARTURES, read_if=(has_attention_layers, reads_text)
    )
    # Base of the wavelengths of `rope` and `rope_2d`.
    rope_base: float = added_option(
        10_000.0,
        not_in_paper=READ_BY_DEPARTURES,
        read_if=lambda config: rotates(config) or rotates_on_grid(config),
    )
    # Share of the channels of a head that `rope` rotates.
    rope_fraction: float = added_option(1.0, not_in_paper=READ_BY_DEPARTURES, read_if=rotates)
    # A name in model.layers.NORMS.
    norm: str = option(
        "layer_norm",
        paper={"section 3.1": ["layer_norm"]},
        read_if=(has_attention_layers, lambda config: config.model.residual != "rezero"),
    )
    # A name in model.residual.RESIDUALS.
    residual: str = option("post_norm", paper={"section 3.1": ["post_norm"]}, read_if=has_attention_layers)
    # A name in model.layers.FEED_FORWARDS.
    feed_forward: str = option("relu", paper={"section 3.3": ["relu"]}, read_if=has_attention_layers)
    # Whether a gated feed-forward layer has width 2/3 d_ff and thus as many parameters as an ungated layer.
    equal_parameters: bool = option(
        False,
        not_in_paper=READ_BY_DEPARTURES,
        read_if=(has_attention_layers, lambda config: config.model.feed_forward not in ("relu", "gelu")),
    )
    # Visibility of source tokens in a decoder-only model: causal, or bidirectional within the source.
    prefix: str = added_option(
        "causal", not_in_paper=READ_BY_DEPARTURES, read_if=(is_decoder_only, translates)
    )
    # A name in model.embedding.EMBEDDINGS; selects which embedding matrices are shared.
    embeddings: str = option("three_way", paper={"section 3.4": ["three_way"]}, read_if=reads_text)
    # Height and width of the patches of an image, in pixels.
    patch_size: int = added_option(4, not_in_paper=READ_BY_DEPARTURES, read_if=classifies_images)
    # A name in model.image_classifier.POOLINGS: what the classes of an image are predicted from.
    pooling: str = added_option("class_token", not_in_paper=READ_BY_DEPARTURES, read_if=classifies_images)
    # A name in model.recurrent.CELLS, for recurrent kinds.
    cell: str = option(
        "lstm",
        not_in_paper=READ_BY_DEPARTURES,
        read_if=lambda config: not has_attention_layers(config),
    )
    # Whether attention uses jax.nn.dot_product_attention where the model allows it.
    fused_attention: bool = option(
        False,
        not_in_paper=CHANGES_ROUNDING,
        affects_result=False,
        read_if=has_attention_layers,
        changeable=True,
    )
    # A name in model.block.REMAT: what the backward pass computes again to save memory.
    remat: str = option(
        "none", not_in_paper=CHANGES_ROUNDING, affects_result=False, read_if=has_attention_layers
    )
    # Whether the layers of a stack share one compiled block, which shortens compilation.
    scan_layers: bool = option(
        False, not_in_paper=CHANGES_ROUNDING, affects_result=False, read_if=has_attention_layers
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
