"""The operation of the device path: in FFCV's loader, compiled, and without a compiler."""

import warnings

import ffcv.loader
import numpy as np
import pytest
import torch
import torch._inductor.config
from slow_augment import AUGMENT, MEAN, STD, augmented, write_noise_beton

from fastmlp.transforms import torch_path
from fastmlp.transforms.augment_params import draw_params
from fastmlp.transforms.pipelines import image_pipelines
from fastmlp.transforms.torch_path import AugmentOnDevice


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    return write_noise_beton(tmp_path_factory.mktemp("beton") / "r.beton")


def test_the_device_operation_in_a_stock_ffcv_loader(beton):
    file, images = beton
    pipelines = image_pipelines(AUGMENT, 24, mean=MEAN, std=STD, seed=5, augment_on="device")
    threads = torch.get_num_threads()
    loader = ffcv.loader.Loader(str(file), 100, 1, order=ffcv.loader.OrderOption.RANDOM, pipelines=pipelines)
    pipelines["image"][-1].epoch = 4
    for ready, labels in loader:
        np.testing.assert_allclose(ready, augmented(images, labels.numpy(), 4), atol=1e-4)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("resampling", ["bilinear", "area"])
def test_the_compiled_expression_is_one_kernel_and_the_same(beton, resampling):
    torch._dynamo.reset()
    images = torch.from_numpy(beton[1][:40])
    boxes, flips = (torch.from_numpy(x) for x in draw_params(AUGMENT, 16, 16, 0, 0, np.arange(40)))
    taps = torch_path.area_taps(16, 24) if resampling == "area" else None
    arguments = images, boxes, flips, torch.from_numpy(MEAN), torch.from_numpy(STD), 24, torch.float32, taps
    torch._inductor.metrics.reset()
    with warnings.catch_warnings(), torch._inductor.config.patch(force_disable_caches=True):
        warnings.simplefilter("ignore")
        compiled = torch.compile(torch_path.crop_resize_normalize, fullgraph=True, options=torch_path.FUSE)(*arguments)
    assert 1 <= torch._inductor.metrics.generated_kernel_count <= 2
    torch.testing.assert_close(compiled, torch_path.crop_resize_normalize(*arguments), atol=1e-4, rtol=0)
    half = torch_path.crop_resize_normalize(*arguments[:6], torch.bfloat16, taps)
    assert half.dtype == torch.bfloat16 and (half.float() - compiled).abs().max() < 0.02


def test_without_a_compiler_the_device_path_goes_on_eager(beton, monkeypatch):
    def fail(*_):
        raise RuntimeError("no C compiler found")

    monkeypatch.setattr(torch_path, "_whole", fail)
    monkeypatch.setattr(torch_path, "_works", True)
    operation = AugmentOnDevice(AUGMENT, 24, mean=MEAN, std=STD, seed=5)
    augment, samples = operation.generate_code(), np.arange(40)
    with pytest.warns(UserWarning, match="no C compiler found.*augmented without it"):
        ready = augment(torch.from_numpy(beton[1][:40]), np.empty((40, 17), np.uint8), samples, 3)
    np.testing.assert_allclose(ready, augmented(beton[1], samples, 3), atol=1e-4)
