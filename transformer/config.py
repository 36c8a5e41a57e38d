"""What a run is: frozen dataclasses whose defaults are the paper's base model.

A default stands here and nowhere else. Values that are wrong by themselves are refused here, when the
dataclass is made; names (a data set, a position scheme) by whoever looks them up.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar

# The special pieces of every vocabulary, shared by the tokenizer, the model and the search.
PAD, BOS, EOS, UNK = 0, 1, 2, 3


class UserError(ValueError):
    """What a user caused and can mend. The message is one line that says how."""


def choose(table: Mapping[str, Any], name: str, field: str) -> Any:
    """Looks `name` up in a visible dict; an unknown name is a `UserError` that lists the known ones."""
    if name not in table:
        raise UserError(f"{field} is {name!r}; it must be one of: {', '.join(sorted(table))}")
    return table[name]


class _Section:
    """Shared checks; `section` is the prefix under which a user knows the fields."""

    section: ClassVar[str]

    def _require(self, field: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"{self.section}.{field} is {getattr(self, field)!r}; it must be {allowed}")

    def _at_least(self, least: int, *fields: str) -> None:
        for field in fields:
            value = getattr(self, field)
            self._require(field, value is None or value >= least, f"at least {least}")

    def _fraction(self, *fields: str) -> None:
        for field in fields:
            self._require(field, 0 <= getattr(self, field) < 1, "at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class TransformerConfig(_Section):
    """The model (paper, section 3; symbols as in Table 3).

    Recurrent kinds read the numbers of layers, d_model, dropout_rate, embeddings, cell and dtype alone.
    """

    section: ClassVar[str] = "model"

    kind: str = "transformer"  # a name in model.KINDS
    num_layers: int = 6  # N, in the encoder and in the decoder
    encoder_layers: int | None = None  # None: num_layers
    decoder_layers: int | None = None  # None: num_layers
    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8  # h
    d_k: int | None = None  # width of a head's queries and keys; None: d_model / num_heads
    d_v: int | None = None  # width of a head's values; None: d_model / num_heads
    dropout_rate: float = 0.1  # P_drop
    dropout_sites: str = "paper"  # a name in model.dropout.DROPOUT_SITES
    positions: str = "sinusoidal"  # a name in model.positions.POSITIONS
    max_positions: int = 1024  # rows of a learned position table; `overflow` begins there at the latest
    # Past the longest sentence trained on: error, clamp, zero or extrapolate; None: the scheme's own.
    overflow: str | None = None
    max_distance: int | None = None  # relative, t5_bias: distances told apart; None: the scheme's
    norm: str = "layer_norm"  # a name in model.layers.NORMS
    norm_placement: str = "post"  # a name in model.layers.NORM_PLACEMENTS
    feed_forward: str = "relu"  # a name in model.layers.FEED_FORWARDS
    equal_parameters: bool = False  # whether a gated feed-forward layer has 2/3 of d_ff, to cost the same
    embeddings: str = "three_way"  # a name in model.embedding.EMBEDDINGS: which matrices are one
    cell: str = "lstm"  # a name in model.recurrent.CELLS, of the recurrent kinds
    dtype: str = "float32"  # of activations; parameters, softmax and norm statistics stay float32

    def __post_init__(self):
        self._at_least(1, "num_layers", "encoder_layers", "decoder_layers", "d_model", "d_ff", "num_heads")
        self._at_least(1, "d_k", "d_v", "max_distance")
        self._at_least(2, "max_positions")  # a piece and EOS
        self._fraction("dropout_rate")
        self._require(
            "d_model",
            self.kind != "transformer"
            or self.d_model % self.num_heads == 0
            or None not in (self.d_k, self.d_v),
            f"a multiple of model.num_heads ({self.num_heads}) unless d_k and d_v are given",
        )
        self._require("dtype", self.dtype in ("float32", "bfloat16"), "float32 or bfloat16")

    @property
    def encoder_depth(self) -> int:
        """N of the encoder, resolved."""
        return self.encoder_layers or self.num_layers

    @property
    def decoder_depth(self) -> int:
        """N of the decoder, resolved."""
        return self.decoder_layers or self.num_layers

    @property
    def key_width(self) -> int:
        """d_k, resolved."""
        return self.d_k or self.d_model // self.num_heads

    @property
    def value_width(self) -> int:
        """d_v, resolved."""
        return self.d_v or self.d_model // self.num_heads


@dataclasses.dataclass(frozen=True)
class DataConfig(_Section):
    """Which text, in which pieces (paper, section 5.1)."""

    section: ClassVar[str] = "data"

    name: str = "wmt14_translate/de-en"  # a name in data.builders.BUILDERS, or any TFDS translation set
    source: str = "en"  # language translated from
    target: str = "de"  # language translated to
    data_dir: str | None = None  # where prepared data lives; None: TFDS's own place
    manual_dir: str | None = None  # multi30k: folder that already holds its files
    text: str = "raw"  # multi30k: raw or lc.norm.tok (lower-cased, normalised, tokenised)
    # parallel_text: "pairs.tsv" or "source.txt,target.txt", each maybe .gz. A TFDS set: a split or a part of
    # one, such as "train[:99%]"; None: the split of that name.
    train: str | None = None
    validation: str | None = None  # as train
    test: str | None = None  # as train
    held_out: int = 0  # parallel_text: pairs held out of train as validation, and as test, where not given
    min_characters: int = 0  # parallel_text: training pairs with a shorter side are dropped
    max_characters: int | None = None  # parallel_text: training pairs with a longer side are dropped
    max_ratio: float | None = None  # parallel_text: of a training pair's sides in characters
    deduplicate: bool = False  # parallel_text: whether a training pair that came before is dropped
    lists: int = 50_000  # number_words: lists to train on
    tokenizer: str = "bpe"  # SentencePiece model type: bpe, unigram or char
    vocab_size: int = 37_000  # pieces, shared by both languages, special ones included
    row_length: int = 256  # pieces in a packed row; longer training pairs are dropped and counted
    workers: int = 0  # processes that assemble batches; 0: a thread of the trainer

    def __post_init__(self):
        self._at_least(8, "vocab_size")
        self._at_least(1, "lists", "max_characters", "max_ratio")
        self._at_least(2, "row_length")
        self._at_least(0, "workers", "held_out", "min_characters")
        self._require("tokenizer", self.tokenizer in ("bpe", "unigram", "char"), "bpe, unigram or char")
        self._require("text", self.text in ("raw", "lc.norm.tok"), "raw or lc.norm.tok")
        self._require("target", self.source != self.target, "another language than data.source")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Section):
    """Adam and the learning rate (paper, section 5.3)."""

    section: ClassVar[str] = "optimizer"

    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    warmup_steps: int = 4_000
    learning_rate: float | None = None  # at the peak; None: the paper's (d_model * warmup_steps)^-0.5

    def __post_init__(self):
        self._at_least(1, "warmup_steps")
        self._fraction("beta1", "beta2")
        self._require("epsilon", self.epsilon > 0, "above 0")
        self._require("learning_rate", self.learning_rate is None or self.learning_rate > 0, "above 0")


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Section):
    """How long, how much at once, and what is written down on the way (paper, sections 5.1, 5.2, 5.4)."""

    section: ClassVar[str] = "train"

    seed: int = 0
    steps: int = 100_000
    batch_tokens: int = 25_000  # target pieces a step, on average, padding not counted
    accumulation: int = 1  # parts into which a step's rows are cut to save memory
    label_smoothing: float = 0.1  # eps_ls
    placement: str = "auto"  # jit, pmap; auto: pmap where there are several devices
    log_every: int = 100  # steps
    validate_every: int = 1_000  # steps between validations; each writes a checkpoint
    patience: int | None = None  # validations in a row without a lower plain loss that end training early
    keep_last: int = 10  # checkpoints, besides the best

    def __post_init__(self):
        self._at_least(0, "seed")
        self._at_least(1, "steps", "batch_tokens", "accumulation", "log_every", "validate_every", "keep_last")
        self._at_least(1, "patience")
        self._fraction("label_smoothing")


@dataclasses.dataclass(frozen=True)
class DecodeConfig(_Section):
    """How translations are searched for (paper, section 6.1)."""

    section: ClassVar[str] = "decode"

    beam_size: int = 4  # 1: greedy
    penalty: str = "wu"  # a name in decoding.search.PENALTIES: how the length counts
    length_penalty: float = 0.6  # alpha, the penalty's exponent
    max_extra: int = 50  # output pieces beyond the input's
    max_length: int | None = None  # output pieces, EOS included; None: no further bound
    min_length: int = 1  # output pieces, EOS included
    sampling: bool = False  # whether outputs are drawn, not searched for
    temperature: float = 1.0  # of the distribution that is drawn from
    top_k: int | None = None  # most probable pieces that are drawn from; None: all
    top_p: float | None = None  # probability that those drawn from have together, at least; None: 1
    seed: int = 0  # of what is drawn
    average_last: int = 1  # checkpoints whose weights are averaged; Table 2 uses 5 (base) or 20 (big)
    batch_tokens: int = 1_024  # source pieces of a batch, padding included; two are searched at once
    max_source: int = 1_024  # pieces of the longest source translated whole, EOS included; longer: in parts

    def __post_init__(self):
        self._at_least(1, "beam_size", "max_extra", "average_last", "batch_tokens")
        self._at_least(1, "min_length", "max_length", "top_k")
        self._at_least(2, "max_source")
        self._at_least(0, "seed", "length_penalty")
        self._require("temperature", self.temperature > 0, "above 0")
        self._require("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        for field, default in (("temperature", 1.0), ("top_k", None), ("top_p", None), ("seed", 0)):
            self._require(
                field, self.sampling or getattr(self, field) == default, "left alone without decode.sampling"
            )
        self._require(
            "max_length",
            self.max_length is None or self.max_length >= self.min_length,
            f"at least decode.min_length ({self.min_length})",
        )


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides a run's result."""

    model: TransformerConfig = TransformerConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()

    def __post_init__(self):
        if self.decode.average_last > self.train.keep_last:
            raise UserError(
                f"decode.average_last is {self.decode.average_last}; "
                f"it must be at most train.keep_last ({self.train.keep_last})"
            )


# Fields that came later, which a stored config.json may lack, and the values that do what was done before.
ADDED: dict[str, dict[str, Any]] = {
    "data": {
        "held_out": 0,
        "min_characters": 0,
        "max_characters": None,
        "max_ratio": None,
        "deduplicate": False,
    },
    "train": {"patience": None},
    "decode": {
        "max_source": 1_024,
        "penalty": "wu",
        "max_length": None,
        "min_length": 1,
        "sampling": False,
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
        "seed": 0,
    },
    "model": {
        "kind": "transformer",
        "encoder_layers": None,
        "decoder_layers": None,
        "dropout_sites": "paper",
        "overflow": None,
        "max_distance": None,
        "norm": "layer_norm",
        "feed_forward": "relu",
        "equal_parameters": False,
        "embeddings": "three_way",
        "cell": "lstm",
    },
}


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """The config as plain nested dicts, for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """Builds and validates a config; missing keys take their defaults.

    Raises:
      UserError: an unknown key (its nearest known one is named) or a value of the wrong type or range.
    """
    return _build(ExperimentConfig, values, "")


def from_stored(values: Mapping[str, Any]) -> ExperimentConfig:
    """As `from_dict`, of a config that was stored, maybe before some fields were there: those of `ADDED`."""
    values = dict(values)
    for section, fields in ADDED.items():
        if isinstance(stored := values.setdefault(section, {}), Mapping):
            values[section] = {**fields, **stored}
    return from_dict(values)


def _build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            check_key(prefix + key)
    return cls(**{key: _convert(hints[key], value, prefix + key) for key, value in values.items()})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def check_key(key: str) -> None:
    """Refuses a dotted key that no config has.

    Raises:
      UserError: names the nearest known key.
    """
    known = list(flatten(to_dict(ExperimentConfig())))
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        raise UserError(f"unknown config key {key}; the nearest known one is {nearest[0]}")


def _convert(kind: Any, value: Any, field: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"{field} is {value!r}; it must be a group of fields")
        return _build(kind, value, field + ".")
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) not in allowed:
        names = " or ".join("None" if one is types.NoneType else one.__name__ for one in allowed)
        raise UserError(f"{field} is {value!r}; it must be of type {names}")
    return value
