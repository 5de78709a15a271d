"""Maximal update parametrization: initial weights and learning rates from width, so that one rate serves all widths.

Yang et al. 2022 ("Tensor Programs V", table 3) for LION and AdamW; for Muon's matrices the spectral condition of Yang,
Simon and Bernstein 2023 (an update's spectral norm goes as sqrt(fan_out / fan_in)). With m = width / base_width, as
factors on torch's initial values, U(+-1 / sqrt(fan_in)), and on the run's learning rate:

    parameter                  initial      LION, AdamW   Muon
    linear_in.weight           1            1             sqrt(out / in) / sqrt(max(out, in)), relative to base_width
    blocks' matrices           1            1 / m         the same, which is 1 / sqrt(m)
    linear_out.weight          1 / sqrt(m)  1 / m         1 / m (AdamW)
    biases of blocks and head  sqrt(m)      1             1 (AdamW)
    linear_in.bias, norms      1            1             1 (AdamW)

torch's blocks have the right variance, 1 / fan_in, but their biases shrink with width, and the head's standard
deviation has to go as 1 / fan_in. All of it is in initial values and rates, nothing in the forward pass, so that the
weights are plain. A group's weight decay is divided by what multiplies its rate (optimizer.parameter_groups): rate
times decay is the same at all widths.
"""

import math

import torch

from ..config import PretrainConfig
from ..models.mlp import MLP


@torch.no_grad()
def scale_initial_weights(model: MLP, config: PretrainConfig) -> None:
    """Multiply a new model's weights by their factors, in place; does nothing in the standard parametrization."""
    if config.parametrization != "mup":
        return
    m = model.arch.width / config.base_width
    for name, p in model.named_parameters():
        if name == "linear_out.weight":
            p.mul_(1 / math.sqrt(m))
        elif p.ndim == 1 and name.startswith(("blocks.", "linear_out.")):
            p.mul_(math.sqrt(m))


def lr_scales(model: MLP, config: PretrainConfig) -> dict[str, float]:
    """Return the factors of the learning rates by the parameters' names, none in the standard parametrization."""
    if config.parametrization != "mup":
        return {}
    m = model.arch.width / config.base_width
    scales = {}
    for name, p in model.named_parameters():
        if name == "linear_out.weight":
            scales[name] = 1 / m
        elif p.ndim == 2 and config.optimizer == "muon":
            rows, columns = p.shape
            base_columns = columns if name == "linear_in.weight" else columns / m
            scales[name] = _muon_lr(rows, columns) / _muon_lr(rows / m, base_columns)
        else:
            scales[name] = 1 / m if p.ndim == 2 and name.startswith("blocks.") else 1.0
    return scales


def _muon_lr(rows: float, columns: float) -> float:
    """Return the rate, but for a constant, at which Muon's update has the spectral norm sqrt(rows / columns).

    Muon gives an orthogonal matrix, of spectral norm 1, the factor sqrt(max(rows, columns)).
    """
    return math.sqrt(rows / columns) / math.sqrt(max(rows, columns))
