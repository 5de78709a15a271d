"""Pipelines of both paths in our Loader: each sample's own augmentation, resuming, the path that fits the device."""

import numpy as np
import pytest
import torch
from slow_augment import AUGMENT, COUNT, MEAN, STD, augmented, batches, write_noise_beton

from fastmlp import Loader, OrderOption
from fastmlp.transforms.augment_params import Augment
from fastmlp.transforms.cpu_decoder import AugmentedRGBImageDecoder
from fastmlp.transforms.pipelines import image_pipelines
from fastmlp.transforms.torch_path import AugmentOnDevice


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    return write_noise_beton(tmp_path_factory.mktemp("beton") / "r.beton")


@pytest.mark.parametrize("path", ["host", "device"])
@pytest.mark.parametrize("batch_size, workers, order", [(64, 1, OrderOption.RANDOM), (17, 2, OrderOption.SEQUENTIAL)])
def test_pipelines_give_each_sample_its_own_augmentation(beton, path, batch_size, workers, order):
    file, images = beton
    pipelines = image_pipelines(AUGMENT, 24, mean=MEAN, std=STD, seed=5, augment_on=path)
    with Loader(file, batch_size, workers, order=order, seed=1, drop_last=False, pipelines=pipelines) as loader:
        for epoch in (0, 3):
            seen = list(batches(loader, epoch))
            assert sorted(np.concatenate([labels for _, labels in seen])) == list(range(COUNT))
            for ready, labels in seen:
                assert ready.dtype == np.float32 and ready.shape == (len(labels), 3 * 24 * 24)
                np.testing.assert_allclose(ready, augmented(images, labels, epoch), atol=1e-4)


def test_resumed_and_concurrent_epochs_keep_their_augmentation(beton):
    file, images = beton
    pipelines = image_pipelines(AUGMENT, 24, mean=MEAN, std=STD, seed=5)
    with Loader(file, 32, order=OrderOption.RANDOM, seed=1, pipelines=pipelines) as loader:
        first, second = iter(loader), iter(loader)  # epochs 0 and 1 at once
        for _ in range(3):
            for epoch, iterator in enumerate((first, second)):
                ready, labels = (x.numpy() for x in next(iterator))
                np.testing.assert_allclose(ready, augmented(images, labels.ravel(), epoch), atol=1e-4)
        state = loader.state_dict()
    with Loader(file, 8, order=OrderOption.RANDOM, seed=1, pipelines=pipelines) as loader:
        loader.load_state_dict(state)
        ready, labels = (x.numpy() for x in next(iter(loader)))
        np.testing.assert_allclose(ready, augmented(images, labels.ravel(), 1), atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("path", ["host", "device"])
def test_pixels_on_a_gpu(beton, path):
    file, images = beton
    pipelines = image_pipelines(AUGMENT, 24, mean=MEAN, std=STD, seed=5, device="cuda", augment_on=path)
    atol = 1e-4 if path == "device" else 0.51 / STD.min()  # the host path sends rounded pixels
    with Loader(file, 64, order=OrderOption.RANDOM, seed=1, drop_last=False, pipelines=pipelines) as loader:
        for ready, labels in loader:
            assert ready.is_cuda and labels.is_cuda
            np.testing.assert_allclose(ready.cpu(), augmented(images, labels.cpu().numpy(), 0), atol=atol)


def test_the_path_fits_the_device():
    def kinds(device, augment_on="auto"):
        pipeline = image_pipelines(AUGMENT, 24, mean=MEAN, std=STD, seed=5, device=device, augment_on=augment_on)[
            "image"
        ]
        return pipeline, [type(operation).__name__ for operation in pipeline]

    pipeline, names = kinds("cpu")
    assert names == ["AugmentedRGBImageDecoder", "ToTensor"] and pipeline[0].seed == 5 and pipeline[0].normalises
    pipeline, names = kinds("cuda")
    assert names == ["SimpleRGBImageDecoder", "ToTensor", "ToDevice", "AugmentOnDevice"]
    assert pipeline[-1].augment == AUGMENT and pipeline[-1].seed == 5
    pipeline, names = kinds("cuda", "host")
    assert names == ["AugmentedRGBImageDecoder", "ToTensor", "ToDevice", "AugmentOnDevice"]
    assert pipeline[0].augment == AUGMENT and pipeline[0].seed == 5 and not pipeline[0].normalises
    assert pipeline[-1].augment == Augment()  # once is enough


@pytest.mark.parametrize(
    "wrong",
    [
        {"res": 0},
        {"res": 8.0},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": 1.5},
        {"mean": (1,), "std": (1,)},
        {"mean": (1, 2, 3), "std": (1, 0, 1)},
        {"mean": (1, 2, float("nan")), "std": (1, 1, 1)},
    ],
)
def test_operations_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="expected"):
        AugmentedRGBImageDecoder(**{"augment": AUGMENT, "res": 8, **wrong})
    with pytest.raises(ValueError, match="expected"):
        AugmentOnDevice(**{"augment": AUGMENT, "res": 8, "mean": MEAN, "std": STD, **wrong})
