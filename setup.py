import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"

setup(
    name="fastmlp",
    # fastmlp/__init__.py holds the version; it is read as text, since importing it here would need its requirements.
    version=re.search(r'^__version__ = "(.+)"', (ROOT / "fastmlp" / "__init__.py").read_text(), re.M).group(1),
    description="Pre-train, transfer and scale MLPs on images, fed from FFCV betons",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["mlp", "ffcv", "image classification", "pre-training", "transfer learning", "scaling laws", "pytorch"],
    python_requires=">=3.11",
    packages=find_packages(include=["fastmlp*"]),
    package_data={"fastmlp": ["py.typed"], "fastmlp.training": ["dataset_settings/*.yaml"]},
    install_requires=[
        "torch",
        "ffcv",
        "numba",
        "numpy",
        "fastargs",
        "pillow>=10.1",  # ffcv imports PIL without declaring it; has_transparency_data is of 10.1
        "setuptools",  # ffcv imports distutils, which Python 3.12 dropped and setuptools carries
        "pyyaml",
        "tqdm",
        "pooch",
    ],
    extras_require={
        "plots": ["matplotlib", "scipy"],
        "logging": ["tensorboard"],
        "export": ["safetensors", "onnx"],
        # scikit-image for its photographs. benchmarks/peers.py knows litdata and mosaicml-streaming, too, but both ask
        # for torchvision, and the latter for numpy < 2.2: neither goes with the torch and numpy of here.
        "bench": ["scikit-image", "webdataset"],
        "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "types-PyYAML", "psutil", "onnxruntime"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
