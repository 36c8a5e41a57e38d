"""Conditions and reasons that the config fields of several sections share."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformer.config.experiment import ExperimentConfig

CHANGES_NOTHING = "changes no result"
CHANGES_ROUNDING = "changes rounding only"
READ_BY_DEPARTURES = "read only by values that are departures already"


def translates(config: "ExperimentConfig") -> bool:
    return config.task == "translation"


def classifies_images(config: "ExperimentConfig") -> bool:
    return config.task == "image_classification"


def reads_text(config: "ExperimentConfig") -> bool:
    return not classifies_images(config)


def searches(config: "ExperimentConfig") -> bool:
    return reads_text(config) and config.task != "language_modeling"


def has_attention_layers(config: "ExperimentConfig") -> bool:
    return not config.model.kind.startswith("recurrent")


def is_decoder_only(config: "ExperimentConfig") -> bool:
    return config.model.kind == "decoder_only"


def has_encoder(config: "ExperimentConfig") -> bool:
    return not is_decoder_only(config)


def rotates(config: "ExperimentConfig") -> bool:
    return has_attention_layers(config) and config.model.positions == "rope"


def rotates_on_grid(config: "ExperimentConfig") -> bool:
    return classifies_images(config) and config.model.positions == "rope_2d"


def samples(config: "ExperimentConfig") -> bool:
    return reads_text(config) and config.decode.sampling


def may_use_mesh(config: "ExperimentConfig") -> bool:
    return config.train.parallelism in ("auto", "mesh")


def has_beam(config: "ExperimentConfig") -> bool:
    return config.decode.beam_size > 1 and not config.decode.sampling
