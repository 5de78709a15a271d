"""python tests/loader/mixed_beton.py PATH: write a beton of mixed fields by FFCV's writer, on two workers."""

import sys

import numpy as np

import fastmlp.transforms.ffcv_import  # noqa: F401  # before the rest of ffcv, which would compile for seconds


class Records:
    """JPEG images of varying size, a float and an array."""

    def __len__(self):
        return 90

    def __getitem__(self, i):
        y, x = np.mgrid[0 : 20 + i % 7, 0 : 30 + i % 5]
        image = np.stack([4 * x + i, 5 * y + i, x + y + i], -1).astype(np.uint8)
        return image, i / 3, np.full(4, i, np.float32)


if __name__ == "__main__":
    from ffcv.fields import FloatField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    mixed = {
        "image": RGBImageField(write_mode="proportion"),
        "value": FloatField(),
        "array": NDArrayField(np.dtype("float32"), (4,)),
    }
    DatasetWriter(sys.argv[1], mixed, num_workers=2).from_indexed_dataset(Records(), chunksize=10)
