"""The encoder of the Transformer as a classifier of images (Dosovitskiy et al. 2021)."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from transformer.batch import ImageFormat, TokenBatch
from transformer.config import ModelConfig, UserError
from transformer.model.attention import RowIndices
from transformer.model.block import Stack
from transformer.model.dropout import Dropout, bind_dropout
from transformer.model.position_scheme import Grid
from transformer.model.positions import check_positions

# For each way to read the encoder's output, the vector that the classes are predicted from. Only
# `class_token` has a class token, which is the first token.
POOLINGS: dict[str, Callable[[Float[Array, "b t m"]], Float[Array, "b m"]]] = {
    "class_token": lambda x: x[:, 0],
    "mean": lambda x: x.mean(axis=1),
}


class ImageClassifier(nn.Module):
    """Predicts the class of an image from its patches, which are the tokens of the encoder.

    Each patch of `patch_size` x `patch_size` pixels is normalized and mapped to d_model by a linear layer. A
    trained class token precedes the patches, unless `pooling` is mean (Dosovitskiy et al. 2021, equation 1).
    All tokens see each other. A linear layer maps the class token, or the mean of the patches, to the logits
    (section 3.1).

    Differs from the paper: there is no decoder, and the tokens are patches of an image. Differs from
    Dosovitskiy et al.: residual connections, norms and activations are those of the config; in pre-training,
    they have a hidden layer before the logits.
    """

    config: ModelConfig
    image_format: ImageFormat

    def setup(self):
        config = self.config
        self.patches = nn.Dense(config.d_model, dtype=config.dtype)
        if self.grid.num_class_tokens:
            self.class_token = self.param("class_token", nn.initializers.zeros, (config.d_model,))
        self.encoder = Stack(
            config, config.encoder_depth, causal=False, has_cross_attention=False, grid=self.grid
        )
        # The initial logits are 0, as in models_vit.py of google-research/vision_transformer.
        self.head = nn.Dense(len(self.image_format.classes), kernel_init=nn.initializers.zeros)

    @classmethod
    def check(cls, config: ModelConfig, shape: tuple[int, int, int] | None = None) -> None:
        """Raises a `UserError` if no model can be made from a config for images of a shape."""
        check_positions(config)
        if config.attention_window is not None:
            raise UserError(
                f"model.attention_window is {config.attention_window}; it must be None with "
                "model.kind=image_classifier, since patches form a grid"
            )
        height, width, _ = shape or (0, 0, 0)
        if height % config.patch_size or width % config.patch_size:
            raise UserError(
                f"model.patch_size is {config.patch_size}; it must divide the height and the width of the "
                f"images ({height} x {width} pixels)"
            )

    @property
    def grid(self) -> Grid:
        """The places of the patches, and whether there is a class token."""
        height, width, _ = self.image_format.shape
        size = self.config.patch_size
        return Grid(height // size, width // size, int(self.config.pooling == "class_token"))

    @nn.nowrap
    def example_inputs(self) -> tuple[Array, Array]:
        """Returns inputs of `__call__` that are enough to make the parameters."""
        return jnp.zeros((1, *self.image_format.shape), jnp.uint8), jnp.ones(1, jnp.int32)

    def __call__(
        self, images: UInt8[Array, "b y x c"], ids: Int[Array, "b"], dropout: Dropout | None = None
    ) -> Float[Array, "b v"]:
        """Returns the logits of the classes of each image, in float32.

        Args:
          images: the pixels.
          ids: see `ImageBatch`. Dropout masks depend on them.
          dropout: key and rate in training; if None, nothing is dropped.
        """
        x = POOLINGS[self.config.pooling](self.encode(images, ids, dropout))
        return self.head(x.astype(jnp.float32))

    def encode(
        self, images: UInt8[Array, "b y x c"], ids: Int[Array, "b"], dropout: Dropout | None = None
    ) -> Float[Array, "b t m"]:
        """Returns the encoder's output for each token: the class token, if there is one, and the patches."""
        x = self.patches(self._flat_patches(images))
        if self.grid.num_class_tokens:
            token = jnp.broadcast_to(self.class_token.astype(x.dtype), (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([token, x], axis=1)
        shape = x.shape[:2]
        positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        tokens = TokenBatch(positions, jnp.broadcast_to(ids[:, None], shape), positions)
        bound = bind_dropout(dropout, tokens, self.config.dropout_sites)
        mask = jnp.ones((shape[0], shape[1], shape[1]), bool)
        return self.encoder(x, mask, RowIndices.whole_rows(positions), bound)[0]

    def _flat_patches(self, images):
        """Returns the normalized pixels of each patch: [b, t, patch_size * patch_size * c]."""
        mean, std = self.image_format.mean, self.image_format.std
        pixels = images.astype(jnp.float32) / 255
        pixels = (pixels - jnp.array(mean)[None, None, None]) / jnp.array(std)[None, None, None]
        size, (rows, columns, _) = self.config.patch_size, self.grid
        pixels = pixels.reshape(len(images), rows, size, columns, size, -1)
        return pixels.swapaxes(2, 3).reshape(len(images), rows * columns, -1)
