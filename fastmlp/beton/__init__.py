"""FFCV's file format: where each byte lies, and a writer for raw images of one size."""
