"""Imports ffcv, which sets torch's and numba's thread counts to 1 (ffcv/pipeline/compiler.py), and sets them back.

The packages whose modules use ffcv import this first.
"""

import numba
import torch

_threads = torch.get_num_threads(), numba.get_num_threads()

import ffcv.pipeline.compiler  # noqa: E402, F401

torch.set_num_threads(_threads[0])
numba.set_num_threads(_threads[1])
