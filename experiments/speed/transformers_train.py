"""Trains Hugging Face's GPT2LMHeadModel in a separate process, on the same documents as our training.

See `torch_loop` for the settings of PyTorch. The model has the sizes, the activation and the tied embeddings
of ours, and the optimizer the same settings, except that the learning rate is constant. A row is one text for
the model, while ours masks documents from each other.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.speed.peer import Prepared, serve
from experiments.speed.torch_loop import DEVICE, prepare_training, set_up
from experiments.speed.workload import SHAPES, window_batches
from transformer.config import BOS, EOS, ExperimentConfig, OptimizerConfig


def make_model(config: ExperimentConfig) -> GPT2LMHeadModel:
    """Returns GPT-2 with the sizes of our model. Its projections of attention have biases; ours have none."""
    model = config.model
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.data.vocab_size,
            n_positions=model.max_positions,
            n_embd=model.d_model,
            n_layer=model.num_layers,
            n_head=model.num_heads,
            n_inner=model.d_ff,
            activation_function="gelu",  # with the exact distribution function, as ours
            resid_pdrop=model.dropout_rate,
            embd_pdrop=model.dropout_rate,
            attn_pdrop=model.dropout_rate,
            layer_norm_epsilon=1e-6,
            use_cache=False,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def make_optimizer(model: GPT2LMHeadModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Returns AdamW, in PyTorch's fastest version. Matrices decay; vectors do not."""
    groups = [
        {"params": [x for x in model.parameters() if (x.ndim >= 2) == decays], "weight_decay": decay}
        for decays, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    betas = config.beta1, config.beta2
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


def mean_loss(model: GPT2LMHeadModel, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy per label. The model's own loss would shift the labels and lose some."""
    return torch.nn.functional.cross_entropy(model(inputs).logits.flatten(0, 1), labels.flatten())


def prepare(shape: str) -> Prepared:
    """Makes the model and the batches; `shape` is a key of `SHAPES`."""
    set_up()
    config = SHAPES[shape].config
    model = make_model(config).to(DEVICE)
    optimizer = make_optimizer(model, config.optimizer)
    batches = window_batches(SHAPES[shape])
    return prepare_training(model, mean_loss, optimizer, batches, config.optimizer.clip_norm)


if __name__ == "__main__":
    serve(prepare)
