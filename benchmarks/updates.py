"""One update of all parameters by LION, against the authors' loop over tensors and a stream of its bytes."""

from collections.abc import Callable

import measure
import torch

from fastmlp.models.mlp import MLP
from fastmlp.training.lion import Lion


def lion_loop(params: list[torch.Tensor], momenta: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
    """Update the parameters as the authors' code does (lion-pytorch's update, a parameter at a time)."""
    for p, m, g in zip(params, momenta, grads, strict=True):
        p.mul_(1 - 1e-5 * 1e-3)
        update = m.clone().mul_(0.9).add(g, alpha=0.1).sign_()
        p.add_(update, alpha=-1e-5)
        m.mul_(0.99).add_(g, alpha=0.01)


def candidates(model: MLP) -> dict[str, Callable[[], object]]:
    """Return one update of all parameters by each candidate, as functions, on the model's device."""
    params = list(model.parameters())
    device = params[0].device
    for p in params:
        p.grad = torch.randn_like(p)
    plain = [p.detach().clone() for p in params]
    momenta, grads = [torch.zeros_like(p) for p in params], [p.grad for p in params]
    compiled, plain_lion = (Lion(params, lr=1e-5, weight_decay=1e-3, compile=how) for how in (True, False))
    compiled.warm_up()
    total = sum(p.numel() for p in params)
    block = 1 << 17 if device.type == "cpu" else total  # on the CPU, blocks that stay in the caches
    a, b, c = (torch.randn(total, device=device) for _ in range(3))

    def stream() -> None:  # reads three, writes two
        for x, y, z in zip(a.split(block), b.split(block), c.split(block), strict=True):
            x.add_(z)
            y.copy_(z)

    return {
        "lion, compiled": compiled.step,
        "lion": plain_lion.step,  # one pass on the CPU, torch's operations elsewhere
        "lion, the authors' loop": lambda: lion_loop(plain, momenta, grads),
        "stream": stream,
    }


def report(settings: dict, updates: dict) -> None:
    """Print the table and the JSON line of the optimisers; their rates are updates per second."""
    loop, stream = (updates[name]["images_per_s"] for name in ("lion, the authors' loop", "stream"))
    rows = []
    for name, result in updates.items():
        median, fastest, slowest = (1e3 / result[which] for which in ("images_per_s", "most", "least"))
        shares = (
            f"{result['images_per_s'] / loop:.2f} of the loop",
            f"{result['images_per_s'] / stream:.2f} of the stream",
        )
        rows.append([name, f"{median:.1f} ms", f"({fastest:.1f} to {slowest:.1f})", *shares])
    measure.print_table("", rows)
    measure.emit("optimiser, updates", settings, updates)
