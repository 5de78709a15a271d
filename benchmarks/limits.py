"""What benchmarks compare with: bare matrix products, copies within memory and to a device, all into kept buffers."""

from collections.abc import Callable, Iterator, Sequence

import torch

from fastmlp import device as devices
from fastmlp.arch import parse_arch

Layers = Sequence[tuple[int, int, bool]]  # inputs, outputs, whether the gradient of the input is needed


def layers(arch: str, res: int, classes: int) -> list[tuple[int, int, bool]]:
    """Return (inputs, outputs, is the gradient with respect to the input needed) of every linear layer."""
    shape = parse_arch(arch)
    wide = shape.expansion * shape.width
    block = [(shape.width, wide, True), (wide, shape.width, True)]
    return [(3 * res * res, shape.width, False), *shape.blocks * block, (shape.width, classes, True)]


def parts(images: int, size: int) -> list[int]:
    """Return the sizes of the parts of at most `size` images; the last may be smaller."""
    return [min(size, images - start) for start in range(0, images, size)]


def fitting(sizes: Sequence[int], images: int) -> list[int]:
    """Return the sizes that are at most the number of images; that number if there is none."""
    return [size for size in sizes if size <= images] or [images]


def _buffers(shapes: Layers, size: int, device: torch.device) -> dict[tuple[int, int], list[torch.Tensor]]:
    """Return x, weight, gradient of the result, result, gradients of weight and x, of each layer's shape."""
    dtype = devices.compute_dtype(device)
    return {
        (i, o): [
            torch.randn(shape, dtype=dtype, device=device)
            for shape in ((size, i), (o, i), (size, o), (size, o), (o, i), (size, i))
        ]
        for i, o, _ in shapes
    }


def training_products(
    shapes: Layers, batch: int, steps: int, micro_batch_size: int, device: torch.device
) -> Callable[[], None]:
    """Return a function that computes the matrix products of training steps, in training's precision."""
    buffers, chunks = _buffers(shapes, micro_batch_size, device), steps * parts(batch, micro_batch_size)

    def run() -> None:
        for images in chunks:
            for i, o, needs_input in shapes:
                x, weight, gradient, out, of_weight, of_input = buffers[i, o]
                torch.mm(x[:images], weight.t(), out=out[:images])
                torch.mm(gradient[:images].t(), x[:images], out=of_weight)
                if needs_input:
                    torch.mm(gradient[:images], weight, out=of_input[:images])

    return run


def forward_products(shapes: Layers, images: int, batch: int, device: torch.device) -> Callable[[], None]:
    """Return a function that computes the matrix products of forward passes, in training's precision."""
    buffers, chunks = _buffers(shapes, batch, device), parts(images, batch)

    def run() -> None:
        for count in chunks:
            for i, o, _ in shapes:
                x, weight, _, out, _, _ = buffers[i, o]
                torch.mm(x[:count], weight.t(), out=out[:count])

    return run


def gather(
    rows: torch.Tensor,  # (N, bytes of a row)
    order: torch.Tensor,  # (batches, batch size) int64
) -> Callable[[], None]:
    """Return a function that copies the rows of each batch into one kept buffer."""
    kept = torch.zeros(order.shape[1], rows.shape[1], dtype=rows.dtype)

    def run() -> None:
        for chosen in order:
            torch.index_select(rows, 0, chosen, out=kept)

    return run


def send(batch_bytes: int, batches: int, device: torch.device) -> Callable[[], None]:
    """Return a function that copies as many bytes as batches have from page-locked memory to a device."""
    source = torch.from_numpy(devices.host_buffer(batch_bytes, pinned=True))
    kept = torch.empty(batch_bytes, dtype=torch.uint8, device=device)

    def run() -> None:
        for _ in range(batches):
            kept.copy_(source, non_blocking=True)

    return run


def slowest(results: dict[str, dict], names: Iterator[str] | Sequence[str]) -> str:
    """Return the name of the limit that binds: of those that work side by side, the slowest."""
    return min(names, key=lambda name: results[name]["images_per_s"])
