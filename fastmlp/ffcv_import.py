"""Imports ffcv without what its import does to others. The packages whose modules use ffcv import this first.

It sets torch's and numba's thread counts to 1 (ffcv/pipeline/compiler.py): they are set back. And it keeps two
constants in a dictionary of numba's (ffcv/fields/rgb_image.py, IMAGE_MODES), for which numba compiles for 3 s in every
process; compiled code never sees it: it gets a plain one.
"""

from unittest import mock

import numba
import numba.typed
import torch

_threads = torch.get_num_threads(), numba.get_num_threads()

with mock.patch.object(numba.typed, "Dict", dict):
    import ffcv.pipeline.compiler  # noqa: F401

torch.set_num_threads(_threads[0])
numba.set_num_threads(_threads[1])
