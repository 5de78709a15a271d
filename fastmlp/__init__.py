"""fastmlp: plain MLPs on images, fed from FFCV betons.

`import fastmlp` is cheap: torch and ffcv are imported when a name that needs them is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME_OF = {
    "Loader": "fastmlp.loader.loader",
    "OrderOption": "fastmlp.loader.loader",
    "build_model": "fastmlp.models.weights",
    "load_model": "fastmlp.models.weights",
    "write_beton": "fastmlp.beton.writer",
}
__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fastmlp' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
