"""What the compilers ask of a card, from NVIDIA's CUDA programming guide (compute capabilities) and white papers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """The properties that decide which kernels are written, and how. Rates are in fastmlp.cost.hardware."""

    device_name: str  # torch.cuda.get_device_name()
    capability: tuple[int, int]
    multiprocessors: int
    threads: int  # of a multiprocessor, at most
    shared_bytes: int  # of a block, at most
    l2_bytes: int


# The names are those of fastmlp.cost.hardware.CARDS.
CHIPS = {
    "T4": Chip("Tesla T4", (7, 5), 40, 1024, 65_536, 4 << 20),
    "A5000": Chip("NVIDIA RTX A5000", (8, 6), 64, 1536, 101_376, 6 << 20),
    "4090": Chip("NVIDIA GeForce RTX 4090", (8, 9), 128, 1536, 101_376, 72 << 20),
    "A100": Chip("NVIDIA A100-SXM4-80GB", (8, 0), 108, 2048, 166_912, 40 << 20),
    "H100": Chip("NVIDIA H100 80GB HBM3", (9, 0), 132, 2048, 232_448, 50 << 20),
}
