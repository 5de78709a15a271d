"""Augmentation: parameters keyed by (seed, epoch, sample), applied on the host or on the device to the same pixels."""

from .. import ffcv_import as ffcv_import
