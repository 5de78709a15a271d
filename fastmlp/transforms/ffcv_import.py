"""What the library takes from ffcv, imported without what that import does to others. No other module imports ffcv.

It sets torch's and numba's thread counts to 1 (ffcv/pipeline/compiler.py), for which numba starts all of its threads:
here it does neither. And it keeps two constants in a dictionary of numba's (ffcv/fields/rgb_image.py, IMAGE_MODES), for
which numba compiles for 3 s in every process; compiled code never sees it: it gets a plain one. Its one warning comes
from distutils, for which all of setuptools is imported (pipeline/graph.py): here from logging.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import numba
import numba.typed
import torch

_set_numba_threads = numba.set_num_threads


def _leave_alone(count: int) -> None:
    pass


@contextmanager
def _without_distutils() -> Iterator[None]:
    names = "distutils", "distutils.log"
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules |= {name: ModuleType(name) for name in names}
    vars(sys.modules["distutils.log"])["warn"] = logging.getLogger("ffcv").warning
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)


with (
    _without_distutils(),
    mock.patch.object(numba.typed, "Dict", dict),
    mock.patch.object(numba, "set_num_threads", _leave_alone),
    mock.patch.object(torch, "set_num_threads", _leave_alone),
):
    from ffcv.fields.base import Field
    from ffcv.fields.basics import FloatDecoder, IntDecoder
    from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
    from ffcv.loader import OrderOption
    from ffcv.pipeline import compiler
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.graph import DecoderNode, Graph, RefNode
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.pipeline.state import State
    from ffcv.reader import Reader
    from ffcv.transforms import ImageMixup, LabelMixup, Squeeze, ToDevice, ToTensor
    from ffcv.traversal_order.base import TraversalOrder

compiler.set_num_threads = _set_numba_threads  # for an ffcv.loader.Loader in the same process
NOT_BY_ROW = (ImageMixup, LabelMixup)  # operations whose rows depend on other rows

__all__ = [
    "IMAGE_MODES",
    "NOT_BY_ROW",
    "AllocationQuery",
    "Compiler",
    "DecoderNode",
    "Field",
    "FloatDecoder",
    "Graph",
    "IntDecoder",
    "Operation",
    "OrderOption",
    "PipelineSpec",
    "Reader",
    "RefNode",
    "SimpleRGBImageDecoder",
    "Squeeze",
    "State",
    "ToDevice",
    "ToTensor",
    "TraversalOrder",
]
