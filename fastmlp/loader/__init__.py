"""Betons to batches: FFCV's Loader and the order in which it reads."""

from .. import ffcv_import as ffcv_import
