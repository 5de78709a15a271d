"""Betons to batches: FFCV's Loader and the order in which it reads."""
