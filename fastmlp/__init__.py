"""fastmlp: plain MLPs on images, fed from FFCV betons.

`import fastmlp` is cheap: torch and ffcv are imported at the first use of a name that needs them.
"""

import os
import signal
import sys


def _end(number: int, _: object) -> None:
    """End the process on a signal while a script's modules are loading, before cli.run takes over.

    An exception would not do: modules that are loading make other errors of it.
    """
    try:
        os.write(2, b"\ninterrupted\n")
    finally:
        os._exit(128 + number)


# Only in the scripts of this repository, which call cli.run: other programs have their own ways.
_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_script = getattr(sys.modules["__main__"], "__file__", None)
_folders = ("writers", "recipes", "recipes/studies", "benchmarks")
if _script and os.path.dirname(os.path.abspath(_script)) in [os.path.join(_root, folder) for folder in _folders]:
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(_number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(_number, _end)

from importlib import import_module  # noqa: E402  # takes longer than all of the above
from typing import TYPE_CHECKING  # noqa: E402

if TYPE_CHECKING:
    from .beton.writer import write_beton as write_beton
    from .evaluation.classify import Predictions as Predictions
    from .evaluation.classify import predict as predict
    from .evaluation.on_dataset import Evaluation as Evaluation
    from .evaluation.on_dataset import evaluate as evaluate
    from .loader.loader import Loader as Loader
    from .loader.loader import OrderOption as OrderOption
    from .models.onnx_export import export_onnx as export_onnx
    from .models.weights import build_model as build_model
    from .models.weights import load_model as load_model
    from .models.weights import save_model as save_model
    from .training.pretrain import train as train
    from .training.run import TrainedRun as TrainedRun
    from .training.transfer import finetune as finetune
    from .training.transfer import linear_probe as linear_probe

__version__ = "0.2.0"

_MODULE_OF = {
    "Evaluation": "fastmlp.evaluation.on_dataset",
    "Loader": "fastmlp.loader.loader",
    "OrderOption": "fastmlp.loader.loader",
    "Predictions": "fastmlp.evaluation.classify",
    "TrainedRun": "fastmlp.training.run",
    "build_model": "fastmlp.models.weights",
    "evaluate": "fastmlp.evaluation.on_dataset",
    "export_onnx": "fastmlp.models.onnx_export",
    "finetune": "fastmlp.training.transfer",
    "linear_probe": "fastmlp.training.transfer",
    "load_model": "fastmlp.models.weights",
    "predict": "fastmlp.evaluation.classify",
    "save_model": "fastmlp.models.weights",
    "train": "fastmlp.training.pretrain",
    "write_beton": "fastmlp.beton.writer",
}
__all__ = [
    "Evaluation",
    "Loader",
    "OrderOption",
    "Predictions",
    "TrainedRun",
    "__version__",
    "build_model",
    "evaluate",
    "export_onnx",
    "finetune",
    "linear_probe",
    "load_model",
    "predict",
    "save_model",
    "train",
    "write_beton",
]

if not TYPE_CHECKING:  # a checker that sees this would take any name for one of the package's

    def __getattr__(name: str):
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'fastmlp' has no attribute {name!r}")
        return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
