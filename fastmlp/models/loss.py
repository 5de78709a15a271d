"""The training loss, cross-entropy with label smoothing under MixUp, and its gradient from the same passes.

With p = softmax(logits) and the targets t = (1 - s) (lam onehot(label) + (1 - lam) onehot(partner's label)) + s / C,
the loss of a sample is -sum(t log p), and its gradient p - t. Autograd's way through log_softmax, gather, lerp and sum
passes 20 times over float32 logits: 14 GiB for 16,384 images of 11,230 classes, with four such tensors alive. Here one
kernel reads the logits twice and writes the gradient, in the logits' dtype.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..transforms.mixup import swap_partners

CHUNK_ELEMENTS = 1 << 24  # without a compiler, of logits that are not float32: 64 MiB for a float32 copy at a time

# Returns the loss, () float32, and its gradient with respect to the logits (B, C), in their dtype and perhaps in their
# memory. Arguments: logits, labels and partners' labels (B,) int64, lam () float32, label smoothing, and the number
# that loss and gradient are divided by.
LossKernel = Callable[[Tensor, Tensor, Tensor, Tensor, float, int], tuple[Tensor, Tensor]]


def mixed_cross_entropy(
    logits: Tensor,  # (B, num_classes) float32 or bfloat16; may be overwritten
    labels: Tensor,  # (B,) int64
    lam: float,  # MixUp's lambda, 1 without MixUp
    label_smoothing: float,
    divisor: int = 1,
    kernel: LossKernel | None = None,  # loss_kernel compiled; None: passes_in_place
    root_gradient: Tensor | None = None,  # () float32, 1.0: what the caller gives to backward() on an accelerator
) -> Tensor:
    """Return the loss summed over the batch and divided by `divisor`, () float32.

    lam * CE(labels) + (1 - lam) * CE(partners' labels). The logits must not be read again: their gradient may be in
    their place. Of bfloat16 logits it is the float32 gradient, rounded once. `loss.backward(root_gradient)` with the
    very tensor that was given here passes it on as it is, as does a gradient of 1 on the CPU; any other gradient of the
    loss scales it. Raises ValueError for a leaf.
    """
    if logits.is_leaf and logits.requires_grad:
        raise ValueError("logits may be overwritten, so they cannot be a leaf that has a gradient: pass a result")
    lam_tensor = torch.full((), lam, device=logits.device)  # a number would be compiled in
    return _LossFunction.apply(
        logits, labels, lam_tensor, label_smoothing, divisor, kernel or passes_in_place, root_gradient
    )


class _LossFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        lam: Tensor,
        label_smoothing: float,
        divisor: int,
        kernel: LossKernel,
        root_gradient: Tensor | None,
    ) -> Tensor:
        loss, gradient = kernel(logits.detach(), labels, swap_partners(labels), lam, label_smoothing, divisor)
        ctx.save_for_backward(gradient)
        ctx.root_gradient = root_gradient
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad_logits,) = ctx.saved_tensors
        # Elsewhere than on the CPU by identity, since comparing the value would wait for the device.
        is_one = grad_loss is ctx.root_gradient or (grad_loss.device.type == "cpu" and bool(grad_loss == 1))
        return grad_logits if is_one else grad_logits * grad_loss, *6 * (None,)


def loss_kernel(
    logits: Tensor, labels: Tensor, partners: Tensor, lam: Tensor, label_smoothing: float, divisor: int
) -> tuple[Tensor, Tensor]:
    """Compute a LossKernel, for a compiler: one kernel that reads each row twice, and a small sum over the rows.

    Into another tensor, since in the logits' place it would be two kernels.
    """
    x, num_classes = logits.float(), logits.shape[1]
    label, partner = labels[:, None], partners[:, None]
    top = x.amax(1, keepdim=True)
    exp = (x - top).exp()
    exp_sum = exp.sum(1, keepdim=True)
    loss = (exp_sum.log() - _target_dot(x, top, label, partner, lam, label_smoothing)).sum() / divisor
    place = torch.arange(num_classes, device=logits.device)
    target = torch.where(place == label, lam, 0.0) + torch.where(place == partner, 1 - lam, 0.0)
    target = (1 - label_smoothing) * target + label_smoothing / num_classes
    return loss, ((exp / exp_sum - target) / divisor).to(logits.dtype)


def passes_in_place(
    logits: Tensor, labels: Tensor, partners: Tensor, lam: Tensor, label_smoothing: float, divisor: int
) -> tuple[Tensor, Tensor]:
    """Compute a LossKernel without a compiler, by passes in place; bfloat16 logits are float32 a chunk at a time."""
    rows, num_classes = max(1, CHUNK_ELEMENTS // logits.shape[1]), logits.shape[1]
    loss = torch.zeros((), device=logits.device)
    label_share = (label_smoothing - 1) / divisor * lam
    partner_share = (label_smoothing - 1) / divisor * (1 - lam)
    chunks = zip(logits.split(rows), labels[:, None].split(rows), partners[:, None].split(rows), strict=True)
    for chunk, label, partner in chunks:
        x = chunk.float()  # float32 logits themselves
        top = x.amax(1, keepdim=True)
        target_dot = _target_dot(x, top, label, partner, lam, label_smoothing)
        exp_sum = x.sub_(top).exp_().sum(1, keepdim=True)
        loss += (exp_sum.log() - target_dot).sum() / divisor
        x.mul_(1 / (divisor * exp_sum))
        if label_smoothing:
            x.sub_(label_smoothing / num_classes / divisor)
        x.scatter_add_(1, label, label_share.expand_as(label))
        x.scatter_add_(1, partner, partner_share.expand_as(label))
        if x.dtype != chunk.dtype:
            chunk.copy_(x)
    return loss, logits


def _target_dot(
    x: Tensor,  # (B, C) float32 logits
    top: Tensor,  # (B, 1) their maximum
    label: Tensor,  # (B, 1) int64
    partner: Tensor,
    lam: Tensor,
    label_smoothing: float,
) -> Tensor:
    """Return sum(t * (x - top)) of each sample, (B, 1); its loss is log(sum(exp(x - top))) minus this."""
    hard = (1 - label_smoothing) * torch.lerp(x.gather(1, partner) - top, x.gather(1, label) - top, lam)
    # The mean of x, not of x - top, which a compiled kernel could only begin once it knows the maximum.
    return hard + label_smoothing * (x.mean(1, keepdim=True) - top) if label_smoothing else hard
