"""Augmentation: host and device against a slow NumPy reference, parameters against their distributions."""

import warnings

import ffcv.loader
import numpy as np
import pytest
import torch
import torch._inductor.config
from ffcv.fields.decoders import IntDecoder
from ffcv.transforms import ToTensor
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastmlp import Loader, OrderOption
from fastmlp.beton import layout
from fastmlp.beton.writer import write_beton
from fastmlp.sources.base import ArraySource
from fastmlp.transforms import resample
from fastmlp.transforms import torch_path as device
from fastmlp.transforms.augment_params import Augment, draw_params, sample_key, uniform
from fastmlp.transforms.cpu_decoder import AugmentedRGBImageDecoder
from fastmlp.transforms.mixup import mix, mixup_lam, swap_partners
from fastmlp.transforms.pipelines import image_pipelines
from fastmlp.transforms.torch_path import AugmentOnDevice

MEAN, STD = np.array([120.0, 110.0, 100.0], np.float32), np.array([60.0, 50.0, 70.0], np.float32)


def slow(image, box, flip, res):
    """One image, pixel by pixel, in float64."""
    top, left, box_h, box_w = (int(v) for v in box)
    height, width = image.shape[:2]

    def pixel(y, x):  # within the box, its border repeated; black outside of the image
        y, x = top + min(max(y, 0), box_h - 1), left + min(max(x, 0), box_w - 1)
        return image[y, x].astype(float) if 0 <= y < height and 0 <= x < width else np.zeros(3)

    out = np.empty((3, res, res))
    for y in range(res):
        for x in range(res):
            sy, sx = (y + 0.5) * box_h / res - 0.5, (x + 0.5) * box_w / res - 0.5
            y0, x0 = int(np.floor(sy)), int(np.floor(sx))
            wy, wx = sy - y0, sx - x0
            value = (1 - wy) * ((1 - wx) * pixel(y0, x0) + wx * pixel(y0, x0 + 1)) + wy * (
                (1 - wx) * pixel(y0 + 1, x0) + wx * pixel(y0 + 1, x0 + 1)
            )
            out[:, y, res - 1 - x if flip else x] = (value - MEAN) / STD
    return out.ravel()


def on_host(images, boxes, flips, res, mean=MEAN, std=STD, dtype=np.float32, offset=0):
    """Through the host path, into memory `offset` numbers past a cache line; uint8 without normalising."""
    count = len(images)
    addresses = np.array([image.ctypes.data for image in images], np.uint64)
    heights, widths = (np.array([image.shape[axis] for image in images], np.int64) for axis in (0, 1))
    memory = np.full(count * 3 * res * res + 64, 77, dtype)
    first = (-memory.ctypes.data % 64) // memory.itemsize + offset
    if dtype == np.uint8:
        out = memory[first : first + count * 3 * res * res].reshape(count, res, res, 3)
        resample.crop_resize(addresses, heights, widths, boxes, flips, out, res)
    else:
        out = memory[first : first + count * 3 * res * res].reshape(count, -1)
        resample.crop_resize_normalize(addresses, heights, widths, boxes, flips, mean, std, out, res)
    assert (memory[:first] == 77).all() and (memory[first + out.size :] == 77).all()  # nothing beside the images
    return out


def on_device(images, boxes, flips, res):
    tensors = [torch.from_numpy(x) for x in (images, boxes, flips, MEAN, STD)]
    return device.crop_resize_normalize(*tensors, res).numpy()


def run_both(images, boxes, flips, res):
    return on_host(images, boxes, flips, res), on_device(images, boxes, flips, res)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pixels_equal_the_slow_reference(data):
    height, width = (data.draw(st.integers(1, 12)) for _ in range(2))
    res = data.draw(st.integers(1, 12) | st.sampled_from([16, 24, 31, 32]))
    count = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    boxes = np.empty((count, 4), np.int32)
    for box in boxes:  # inside, across the border, or outside of the image
        box[2:] = data.draw(st.integers(1, height + 3)), data.draw(st.integers(1, width + 3))
        box[:2] = data.draw(st.integers(-4, height)), data.draw(st.integers(-4, width))
    flips = rng.integers(0, 2, count).astype(bool)
    expected = np.stack([slow(*sample, res) for sample in zip(images, boxes, flips, strict=True)])
    for got in run_both(images, boxes, flips, res):
        np.testing.assert_allclose(got, expected, atol=1e-4)
    pixels = (expected.reshape(count, 3, res, res) * STD[:, None, None] + MEAN[:, None, None]).transpose(0, 2, 3, 1)
    rounded = on_host(images, boxes, flips, res, dtype=np.uint8)
    assert np.abs(rounded - pixels).max() < 0.501


def test_thousands_of_boxes_equal_the_slow_reference():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2000, 16, 16, 3), dtype=np.uint8)
    boxes, flips = draw_params(Augment("random_resized", flip=True), 16, 16, 0, 0, np.arange(2000))
    expected = np.stack([slow(*sample, 8) for sample in zip(images, boxes, flips, strict=True)])
    for got in run_both(images, boxes, flips, 8):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("res", [7, 8, 32])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_images_of_any_size_into_memory_of_any_alignment(res, offset):
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in rng.integers(1, 70, (40, 2))]
    images += [rng.integers(0, 256, (res, res, 3), dtype=np.uint8) for _ in range(4)]
    sides = np.array([image.shape[:2] for image in images])
    flips = np.arange(44) % 2 == 0
    for crop in ("none", "center", "random_resized"):
        boxes = draw_params(Augment(crop), sides[:, 0], sides[:, 1], 0, 0, np.arange(44))[0]
        got = on_host(images, boxes, flips, res, offset=offset)
        for image, box, flip, mine in zip(images, boxes, flips, got, strict=True):
            np.testing.assert_allclose(mine, on_device(image[None], box[None], np.array([flip]), res)[0], atol=1e-4)


@pytest.mark.parametrize("res", [7, 16])
def test_identity_gives_exact_integers(res):
    images = np.random.default_rng(0).integers(0, 256, (5, res, res, 3), dtype=np.uint8)
    boxes = np.tile(np.array([0, 0, res, res], np.int32), (5, 1))
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    for flip, expected in ((False, images), (True, images[:, :, ::-1])):
        flips = np.full(5, flip)
        out = on_host(images, boxes, flips, res, zero, one)
        np.testing.assert_array_equal(out.reshape(5, 3, res, res), expected.transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(on_host(images, boxes, flips, res, dtype=np.uint8), expected)


def test_equals_grid_sample():
    images = np.random.default_rng(0).integers(0, 256, (50, 20, 20, 3), dtype=np.uint8)
    boxes, flips = draw_params(Augment("random_resized", (0.3, 1.0), flip=True), 20, 20, 0, 0, np.arange(50))
    centre = (np.arange(16) + 0.5) / 16
    inner = []  # grid_sample blends with pixels beyond the box's border: compare those that need none
    grid = np.empty((50, 16, 16, 2), np.float32)
    for b, ((top, left, h, w), flip) in enumerate(zip(boxes, flips, strict=True)):
        y, x = top + centre * h, left + (centre[::-1] if flip else centre) * w
        grid[b] = np.stack(np.meshgrid(x, y), -1) / 20 * 2 - 1
        inner.append(np.outer(abs(centre - 0.5) * h <= h / 2 - 0.5, abs(centre - 0.5) * w <= w / 2 - 0.5))
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    theirs = torch.nn.functional.grid_sample(planes, torch.from_numpy(grid), align_corners=False).numpy()
    theirs = (theirs - MEAN[:, None, None]) / STD[:, None, None]
    inside = np.broadcast_to(np.array(inner)[:, None], theirs.shape)
    for got in run_both(images, boxes, flips, 16):
        np.testing.assert_allclose(got.reshape(theirs.shape)[inside], theirs[inside], atol=1e-4)


def test_resizing_equals_torch_interpolate():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 32, 32], [4, 9, 20, 11], [31, 0, 1, 32]], np.int32)
    for got in run_both(images, boxes, np.zeros(3, bool), 64):
        for image, (top, left, h, w), mine in zip(images, boxes, got, strict=True):
            crop = torch.from_numpy(image[top : top + h, left : left + w]).permute(2, 0, 1)[None].float()
            theirs = torch.nn.functional.interpolate(crop, (64, 64), mode="bilinear", align_corners=False)[0].numpy()
            np.testing.assert_allclose(
                mine.reshape(3, 64, 64), (theirs - MEAN[:, None, None]) / STD[:, None, None], atol=1e-4
            )


def test_parameters_depend_on_the_sample_alone():
    augment = Augment("random_resized", flip=True)
    boxes, flips = draw_params(augment, 64, 64, 3, 5, np.arange(1000))
    order = np.random.default_rng(0).permutation(1000)
    for part in np.array_split(order, 7):  # another order, another batch size
        part_boxes, part_flips = draw_params(augment, 64, 64, 3, 5, part)
        np.testing.assert_array_equal(part_boxes, boxes[part])
        np.testing.assert_array_equal(part_flips, flips[part])
    for other in ((4, 5), (3, 6), (5, 3)):
        assert (draw_params(augment, 64, 64, *other, np.arange(1000))[0] != boxes).any(axis=1).mean() > 0.9


def uniforms(seed, epoch, samples, draw, count=1):
    streams = [np.uint64(sample_key(seed, epoch, sample)) for sample in samples.tolist()]
    return np.array([[uniform(state, d) for state in streams] for d in range(draw, draw + count)])


def test_uniforms_are_uniform_and_independent():
    values = uniforms(7, 1, np.arange(100_000), 0, 3)
    assert values.min() >= 0 and values.max() < 1
    assert stats.kstest(values.ravel()[::3], "uniform").pvalue > 1e-3
    others = [
        uniforms(7, 2, np.arange(100_000), 0)[0],
        uniforms(8, 1, np.arange(100_000), 0)[0],
        values[1],
        values[2],
        np.roll(values[0], 1),
        uniforms(1, 7, np.arange(100_000), 0)[0],
    ]
    for other in others:
        table, *_ = np.histogram2d(values[0], other, bins=16, range=[(0, 1), (0, 1)])
        assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_resized_crops_follow_torchvision():
    """The same distribution as torchvision's loop, drawn here with NumPy's generator."""
    rng = np.random.default_rng(0)

    def torchvision(height, width, scale, ratio):
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
        if width / height < min(ratio):
            w, h = width, round(width / min(ratio))
        elif width / height > max(ratio):
            w, h = round(height * max(ratio)), height
        else:
            w, h = width, height
        return (height - h) // 2, (width - w) // 2, h, w

    for height, width, scale, ratio in (
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.9, 1.0), (0.5, 2.0)),
        (32, 32, (0.4, 1.0), (1.0, 1.0)),
        (20, 60, (0.8, 1.0), (3 / 4, 4 / 3)),
        (60, 20, (0.3, 1.0), (3 / 4, 4 / 3)),
    ):
        ours = draw_params(Augment("random_resized", scale, ratio), height, width, 1, 1, np.arange(20_000))[0]
        theirs = np.array([torchvision(height, width, scale, ratio) for _ in range(20_000)])
        assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= [height, width]).all()
        assert (ours[:, 2:] > 0).all()
        for column in range(4):
            assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3, (scale, ratio, column)


def test_shifts_and_flips():
    boxes, flips = draw_params(Augment("pad_and_crop", padding=2, flip=True), 32, 32, 0, 0, np.arange(50_000))
    assert (boxes[:, 2:] == 32).all()
    counts = np.unique(boxes[:, :2], axis=0, return_counts=True)[1]
    assert len(counts) == 25 and stats.chisquare(counts).pvalue > 1e-3
    assert abs(flips.mean() - 0.5) < 0.01
    boxes, flips = draw_params(Augment(), 32, 32, 0, 0, np.arange(3))
    assert (boxes == [0, 0, 32, 32]).all() and not flips.any()
    heights, widths = np.array([40, 9, 1]), np.array([60, 20, 1])
    boxes, _ = draw_params(Augment("center", center=0.5), heights, widths, 0, 0, np.arange(3))
    np.testing.assert_array_equal(boxes, [[10, 20, 20, 20], [2, 8, 4, 4], [0, 0, 1, 1]])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"crop": "bogus"}, "unknown crop 'bogus'"),
        ({"scale": (0.5, 0.1)}, "least <= most"),
        ({"ratio": (0, 1)}, "ratio"),
        ({"padding": -1}, "padding -1"),
        ({"center": 0.0}, "center 0.0"),
    ],
)
def test_augmentations_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        Augment(**wrong)


# --- as FFCV operations

HOW = Augment("random_resized", (0.2, 1.0), flip=True)
COUNT = 300


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    source = ArraySource(images, np.arange(COUNT), tuple(map(str, range(COUNT))))
    return write_beton(tmp_path_factory.mktemp("beton") / "r.beton", source, 16, seed=None), images


def expected(images, samples, epoch, seed=5, res=24, how=HOW):
    boxes, flips = draw_params(how, 16, 16, seed, epoch, samples)
    return np.stack([slow(images[i], *params, res) for i, *params in zip(samples, boxes, flips, strict=True)])


def batches(loader, epoch):
    loader.next_epoch = epoch
    for images, labels in loader:
        yield images.numpy().copy(), labels.numpy().ravel().copy()


@pytest.mark.parametrize("path", ["host", "device"])
@pytest.mark.parametrize("batch_size, workers, order", [(64, 1, OrderOption.RANDOM), (17, 2, OrderOption.SEQUENTIAL)])
def test_pipelines_give_each_sample_its_own_augmentation(beton, path, batch_size, workers, order):
    file, images = beton
    pipelines = image_pipelines(HOW, 24, mean=MEAN, std=STD, seed=5, augment_on=path)
    with Loader(file, batch_size, workers, order=order, seed=1, drop_last=False, pipelines=pipelines) as loader:
        for epoch in (0, 3):
            seen = list(batches(loader, epoch))
            assert sorted(np.concatenate([labels for _, labels in seen])) == list(range(COUNT))
            for ready, labels in seen:
                assert ready.dtype == np.float32 and ready.shape == (len(labels), 3 * 24 * 24)
                np.testing.assert_allclose(ready, expected(images, labels, epoch), atol=1e-4)


def test_resumed_and_concurrent_epochs_keep_their_augmentation(beton):
    file, images = beton
    pipelines = image_pipelines(HOW, 24, mean=MEAN, std=STD, seed=5)
    with Loader(file, 32, order=OrderOption.RANDOM, seed=1, pipelines=pipelines) as loader:
        first, second = iter(loader), iter(loader)  # epochs 0 and 1 at once
        for _ in range(3):
            for epoch, iterator in enumerate((first, second)):
                ready, labels = (x.numpy() for x in next(iterator))
                np.testing.assert_allclose(ready, expected(images, labels.ravel(), epoch), atol=1e-4)
        state = loader.state_dict()
    with Loader(file, 8, order=OrderOption.RANDOM, seed=1, pipelines=pipelines) as loader:
        loader.load_state_dict(state)
        ready, labels = (x.numpy() for x in next(iter(loader)))
        np.testing.assert_allclose(ready, expected(images, labels.ravel(), 1), atol=1e-4)


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_decoder_in_a_stock_ffcv_loader(beton, os_cache, normalised):
    file, images = beton
    numbers = {"mean": MEAN, "std": STD} if normalised else {}
    decoder = AugmentedRGBImageDecoder(HOW, 24, seed=5, **numbers)
    threads = torch.get_num_threads()
    loader = ffcv.loader.Loader(
        str(file),
        64,
        1,
        os_cache,
        order=ffcv.loader.OrderOption.RANDOM,
        drop_last=False,
        pipelines={"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    for epoch in (0, 2):
        decoder.epoch = epoch
        for ready, labels in loader:
            wanted = expected(images, labels.numpy().ravel(), epoch)
            if normalised:
                np.testing.assert_allclose(ready, wanted, atol=1e-4)
            else:
                pixels = wanted.reshape(-1, 3, 24, 24) * STD[:, None, None] + MEAN[:, None, None]
                assert np.abs(ready.numpy() - pixels.transpose(0, 2, 3, 1)).max() < 0.501
    torch.set_num_threads(threads)


def test_the_device_operation_in_a_stock_ffcv_loader(beton):
    file, images = beton
    pipelines = image_pipelines(HOW, 24, mean=MEAN, std=STD, seed=5, augment_on="device")
    threads = torch.get_num_threads()
    loader = ffcv.loader.Loader(str(file), 100, 1, order=ffcv.loader.OrderOption.RANDOM, pipelines=pipelines)
    pipelines["image"][-1].epoch = 4
    for ready, labels in loader:
        np.testing.assert_allclose(ready, expected(images, labels.numpy(), 4), atol=1e-4)
    torch.set_num_threads(threads)


def test_the_host_path_may_send_bytes(beton):
    """What it does for CUDA, with the CPU as the device: crops as uint8, normalised there."""
    file, images = beton
    decode, finish = AugmentedRGBImageDecoder(HOW, 24, seed=5), AugmentOnDevice(Augment(), 24, mean=MEAN, std=STD)
    pipelines = {"image": [decode, ToTensor(), finish], "label": [IntDecoder(), ToTensor()]}
    with Loader(file, 64, order=OrderOption.RANDOM, seed=1, pipelines=pipelines) as loader:
        for ready, labels in batches(loader, 2):
            np.testing.assert_allclose(ready, expected(images, labels, 2), atol=0.51 / STD.min())


def test_the_compiled_expression_is_one_kernel_and_the_same(beton):
    torch._dynamo.reset()
    images = torch.from_numpy(beton[1][:40])
    boxes, flips = (torch.from_numpy(x) for x in draw_params(HOW, 16, 16, 0, 0, np.arange(40)))
    arguments = images, boxes, flips, torch.from_numpy(MEAN), torch.from_numpy(STD), 24
    torch._inductor.metrics.reset()
    with warnings.catch_warnings(), torch._inductor.config.patch(force_disable_caches=True):
        warnings.simplefilter("ignore")
        compiled = torch.compile(device.crop_resize_normalize, fullgraph=True, options=device.FUSE)(*arguments)
    assert 1 <= torch._inductor.metrics.generated_kernel_count <= 2
    torch.testing.assert_close(compiled, device.crop_resize_normalize(*arguments), atol=1e-4, rtol=0)
    half = device.crop_resize_normalize(*arguments, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and (half.float() - compiled).abs().max() < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("path", ["host", "device"])
def test_pixels_on_a_gpu(beton, path):
    file, images = beton
    pipelines = image_pipelines(HOW, 24, mean=MEAN, std=STD, seed=5, device="cuda", augment_on=path)
    atol = 1e-4 if path == "device" else 0.51 / STD.min()  # the host path sends rounded pixels
    with Loader(file, 64, order=OrderOption.RANDOM, seed=1, drop_last=False, pipelines=pipelines) as loader:
        for ready, labels in loader:
            assert ready.is_cuda and labels.is_cuda
            np.testing.assert_allclose(ready.cpu(), expected(images, labels.cpu().numpy(), 0), atol=atol)


def test_without_a_compiler_the_device_path_goes_on_eager(beton, monkeypatch):
    def fail(*_):
        raise RuntimeError("no C compiler found")

    monkeypatch.setattr(device, "_whole", fail)
    monkeypatch.setattr(device, "_works", True)
    operation = AugmentOnDevice(HOW, 24, mean=MEAN, std=STD, seed=5)
    augment, samples = operation.generate_code(), np.arange(40)
    with pytest.warns(UserWarning, match="no C compiler found.*augmented without it"):
        ready = augment(torch.from_numpy(beton[1][:40]), None, samples, 3)
    np.testing.assert_allclose(ready, expected(beton[1], samples, 3), atol=1e-4)


def test_jpeg_betons_are_refused(tmp_path):
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter

    image = np.zeros((8, 8, 3), np.uint8)
    writer = DatasetWriter(str(tmp_path / "j.beton"), {"image": RGBImageField(write_mode="jpg")}, num_workers=1)
    writer.from_indexed_dataset([(image,)] * 3)
    with pytest.raises(ValueError, match="reads raw images, the beton has JPEG"):
        Loader(tmp_path / "j.beton", 1, pipelines={"image": [AugmentedRGBImageDecoder(Augment(), 8)]})
    with pytest.raises(ValueError, match="both mean and std"):
        AugmentedRGBImageDecoder(Augment(), 8, mean=MEAN)
    with pytest.raises(ValueError, match="unknown path 'gpu'"):
        image_pipelines(Augment(), 8, mean=MEAN, std=STD, augment_on="gpu")


def test_the_path_fits_the_device():
    def kinds(device, augment_on="auto"):
        pipeline = image_pipelines(HOW, 24, mean=MEAN, std=STD, seed=5, device=device, augment_on=augment_on)["image"]
        return pipeline, [type(operation).__name__ for operation in pipeline]

    pipeline, names = kinds("cpu")
    assert names == ["AugmentedRGBImageDecoder", "ToTensor"] and pipeline[0].seed == 5 and pipeline[0].normalises
    pipeline, names = kinds("cuda")
    assert names == ["SimpleRGBImageDecoder", "ToTensor", "ToDevice", "AugmentOnDevice"]
    assert pipeline[-1].augment == HOW and pipeline[-1].seed == 5
    pipeline, names = kinds("cuda", "host")
    assert names == ["AugmentedRGBImageDecoder", "ToTensor", "ToDevice", "AugmentOnDevice"]
    assert pipeline[0].augment == HOW and pipeline[0].seed == 5 and not pipeline[0].normalises
    assert pipeline[-1].augment == Augment()  # once is enough


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("kind", [Loader, ffcv.loader.Loader])
def test_progressive_resizing(beton, kind, normalised):
    file, images = beton
    decoder = AugmentedRGBImageDecoder(Augment(), 16, **({"mean": MEAN, "std": STD} if normalised else {}))
    threads = torch.get_num_threads()
    loader = kind(str(file), 100, 1, pipelines={"image": [decoder], "label": None}, recompile=kind is not Loader)
    for res in (16, 24, 8, 24):
        decoder.res = res
        for (batch,) in loader:
            assert batch.shape[1:] == ((3 * res * res,) if normalised else (res, res, 3))
        wanted = expected(images, [299], 0, res=res, how=Augment())[0].reshape(3, res, res)
        if normalised:
            np.testing.assert_allclose(batch[-1].reshape(3, res, res), wanted, atol=1e-4)
        else:
            pixels = wanted * STD[:, None, None] + MEAN[:, None, None]
            np.testing.assert_allclose(batch[-1].transpose(2, 0, 1), pixels, atol=0.501)
        if kind is Loader:
            abandoned = iter(loader)
            next(abandoned)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("place, size, value", [(1, 2, 0), (3, 2, 0), (5, 8, 2**64 - 700), (5, 8, 0)])
def test_corrupt_records_are_refused(beton, tmp_path, place, size, value):
    whole = bytearray(beton[0].read_bytes())
    record = layout.HEADER.itemsize + 2 * layout.DESCRIPTOR.itemsize + 7 * layout.METADATA.itemsize
    whole[record + place : record + place + size] = value.to_bytes(size, "little")
    (tmp_path / "c.beton").write_bytes(whole)
    with pytest.raises(ValueError, match="corrupt: an image"):
        Loader(tmp_path / "c.beton", 1, pipelines={"image": [AugmentedRGBImageDecoder(Augment(), 8)]})


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
        AugmentedRGBImageDecoder(**{"augment": HOW, "res": 8, **wrong})
    with pytest.raises(ValueError, match="expected"):
        AugmentOnDevice(**{"augment": HOW, "res": 8, "mean": MEAN, "std": STD, **wrong})


def test_ffcv_s_debugging_mode(beton):
    from ffcv.pipeline.compiler import Compiler

    file, images = beton
    decoder = AugmentedRGBImageDecoder(HOW, 24, seed=5, mean=MEAN, std=STD)
    Compiler.set_enabled(False)
    threads = torch.get_num_threads()
    try:
        loader = ffcv.loader.Loader(str(file), 50, 1, pipelines={"image": [decoder], "label": None})
        (ready,) = next(iter(loader))
    finally:
        Compiler.set_enabled(True)
        torch.set_num_threads(threads)
    np.testing.assert_allclose(ready, expected(images, np.arange(50), 0), atol=1e-4)


def test_boxes_of_thin_images_hold_a_pixel():
    for height, width in ((1, 500), (500, 1), (1, 1)):
        for ratio in ((100.0, 100.0), (0.01, 0.01)):
            boxes, _ = draw_params(Augment("random_resized", ratio=ratio), height, width, 0, 0, np.arange(500))
            assert (boxes[:, 2:] >= 1).all() and (boxes[:, :2] + boxes[:, 2:] <= [height, width]).all()


def test_shift_and_flip_are_independent():
    boxes, flips = draw_params(Augment("pad_and_crop", padding=2, flip=True), 32, 32, 0, 0, np.arange(50_000))
    for axis in (0, 1):
        table = np.histogram2d(boxes[:, axis], flips, bins=(5, 2))[0]
        assert stats.chi2_contingency(table).pvalue > 1e-4


# --- MixUp


def test_mixup_pairs_and_weights():
    values = torch.arange(7.0)[:, None]
    assert swap_partners(values).ravel().tolist() == [1, 0, 3, 2, 5, 4, 6]
    assert torch.equal(torch.cat([swap_partners(values[:4]), swap_partners(values[4:])]), swap_partners(values))
    torch.testing.assert_close(mix(values, 0.25), 0.25 * values + 0.75 * swap_partners(values))
    assert mix(values, 1.0) is values and mixup_lam(0.0, 1, 1) == 1.0
    weights = np.array([mixup_lam(0.8, 0, step) for step in range(5000)])
    assert stats.kstest(weights, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    assert weights[3] == mixup_lam(0.8, 0, 3) != mixup_lam(0.8, 1, 3)
    assert mixup_lam(0.8, 0, 1) != mixup_lam(0.8, 1, 0)


def test_mixing_embeddings_equals_mixing_images():
    torch.manual_seed(0)
    embed, images = torch.nn.Linear(48, 16), torch.randn(9, 48)
    torch.testing.assert_close(mix(embed(images), 0.3), embed(mix(images, 0.3)), atol=1e-5, rtol=1e-5)
