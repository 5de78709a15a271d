"""fastmlp: plain MLPs on images, fed from FFCV betons.

`import fastmlp` is cheap: torch and ffcv are imported at the first use of a name that needs them.
"""

import os
import sys


def _report_uncaught(kind, error, trace) -> None:
    """Print one line for Ctrl-C while a script's first modules are loading, before cli.run takes over."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    elif sys.stderr:
        sys.stderr.write("\ninterrupted\n")


# Only in the scripts of this repository: other programs have their own ways.
_script = getattr(sys.modules["__main__"], "__file__", None)
if _script and os.path.abspath(_script).startswith(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
):
    sys.excepthook = _report_uncaught

from importlib import import_module  # noqa: E402  # takes longer than all of the above
from typing import TYPE_CHECKING  # noqa: E402

if TYPE_CHECKING:
    from .beton.writer import write_beton as write_beton
    from .loader.loader import Loader as Loader
    from .loader.loader import OrderOption as OrderOption
    from .models.weights import build_model as build_model
    from .models.weights import load_model as load_model

__version__ = "0.1.0"

_MODULE_OF = {
    "Loader": "fastmlp.loader.loader",
    "OrderOption": "fastmlp.loader.loader",
    "build_model": "fastmlp.models.weights",
    "load_model": "fastmlp.models.weights",
    "write_beton": "fastmlp.beton.writer",
}
__all__ = ["Loader", "OrderOption", "__version__", "build_model", "load_model", "write_beton"]

if not TYPE_CHECKING:  # a checker that sees this would take any name for one of the package's

    def __getattr__(name: str):
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'fastmlp' has no attribute {name!r}")
        return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
