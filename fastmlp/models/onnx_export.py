"""Export of a trained model as one ONNX file: raw pixels in, logits and probabilities out.

    python -m fastmlp.models.onnx_export runs/.../final.pt model.onnx --input-size 224

The graph does what fastmlp.predict does to pixels: scaled as the writers scale plain files (Pillow's bicubic, bit for
bit), the centre square, resized as the model resizes, normalised, then the model in float32. Resizing by fixed factors
is linear in rows and in columns: two constant matrices.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from .. import __version__, cli
from ..atomic import write_atomic
from ..sources.fit import FITS, Fit, fitted
from ..transforms.augment_params import Augment, draw_params, normalisation
from ..transforms.resample import crop_resize_normalize
from .mlp import MLP, BottleneckBlock
from .weights import METADATA, load_model

OPSET = 20  # the first with Gelu; onnxruntime has it since 1.17
MAX_BYTES = 2**31 - 2**24  # protobuf's limit, less room for nodes and names
MAX_SIDE = 65_535  # of an image in a beton


def export_onnx(
    model_or_weights: MLP | str | Path,
    path: str | Path,
    input_size: int | Sequence[int] | None = None,  # of the images: their side, or height and width; None: model.res
    metadata: dict[str, Any] | None = None,  # what is to differ from the model's own, such as mean, std and classes
    fit: str = "auto",
) -> Path:
    """Export a model, or what load_model takes, to `path`, which ends in .onnx; return it.

    Input "images": (batch, height, width, 3) uint8, RGB, a batch of any size. Outputs: "logits" and their softmax,
    "probabilities", (batch, num_classes) float32. metadata_props has architecture and metadata, text as it is, all else
    as JSON, such as "classes", a list of names.

    input_size: of the images that it will be given, in px. metadata: "mean" and "std" are three numbers each (0-255).
    fit: how images of another size than model.res are scaled, as of fastmlp.predict: "square", "longest", or "auto", as
    the model was trained. "none" resizes as evaluation does the images of a beton of another size, by model.resampling;
    "bilinear" does not smooth what it shrinks.

    Raises ModuleNotFoundError, with the command to run, if onnx is missing; ValueError for a path or an input size that
    cannot be, for metadata without mean and std or with names of other classes, and for weights of more than 2 GiB;
    what load_model raises; OSError if the file cannot be written.
    """
    onnx, path = _import_onnx(), Path(path).expanduser()
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: expected the name of a file to write that ends in .onnx")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected the name of a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)  # now, so that a folder that cannot be made fails before the work
    if isinstance(model_or_weights, MLP):
        model, origin = model_or_weights, "the model's metadata"
    else:
        model, origin = load_model(model_or_weights)[0], str(model_or_weights)
    size = _height_and_width(input_size, model.res)
    description = _describe(model, {**model.metadata, **(metadata or {})}, origin)
    if fit not in ("auto", "none", *FITS):
        raise ValueError(f"fit={fit!r}: expected auto, {', '.join(FITS)} or none")
    fit = description["fit"] if fit == "auto" else fit
    constants = _constants(model, size, fit, *normalisation(description["mean"], description["std"]))
    if (needed := sum(array.nbytes for array in constants.values())) > MAX_BYTES:
        raise ValueError(
            f"{model.arch} takes {needed / 2**30:.1f} GiB, but an ONNX file holds at most 2 GiB: use its weights as "
            "safetensors, or train a narrower model"
        )
    write_atomic(path, _to_bytes(onnx, model, size, constants, description))
    return path


def _import_onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("onnx is not installed: pip install 'fastmlp[export]'") from error
    return onnx


def _height_and_width(input_size: int | Sequence[int] | None, res: int) -> tuple[int, int]:
    """Return the size of the input; raise ValueError if it cannot be."""
    given = res if input_size is None else input_size
    given = given.tolist() if hasattr(given, "tolist") else given  # numpy's numbers and arrays
    sides = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given, given)
    if len(sides) != 2 or any(type(side) is not int or not 0 < side <= MAX_SIDE for side in sides):
        raise ValueError(
            f"input size {given!r}: expected the side of the images in pixels, or their height and width, from 1 to "
            f"{MAX_SIDE:,}"
        )
    return sides


def _describe(model: MLP, metadata: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return what is stored with the graph; raise ValueError if images could not be normalised or classes be named."""
    if missing := [name for name in ("mean", "std") if name not in metadata]:
        raise ValueError(
            f"{origin} has no {' and no '.join(missing)}, with which images are normalised: export it in Python by "
            "fastmlp.export_onnx(..., metadata={'mean': [...], 'std': [...]}), three numbers each (0-255 scale)"
        )
    numbers = {name: np.asarray(metadata[name], float).tolist() for name in ("mean", "std")}
    metadata = {**metadata, "classes": metadata.get("classes", []), **numbers}
    metadata["classes"] = [*metadata["classes"]] if not isinstance(metadata["classes"], str) else metadata["classes"]
    known = {name: is_valid for name, is_valid in METADATA.items() if name in metadata and name not in numbers}
    if wrong := [name for name, is_valid in known.items() if not is_valid(metadata[name])]:
        raise ValueError(f"{origin} has wrong metadata: {', '.join(wrong)}")
    classes = metadata["classes"]
    if len(classes) not in (0, model.num_classes):
        raise ValueError(
            f"{origin} names {len(classes):,} classes, but the head has {model.num_classes:,}: give the names of these "
            "as metadata={'classes': [...]}, or [] for none"
        )
    own = {"arch": str(model.arch), "res": model.res, "num_classes": model.num_classes, "resampling": model.resampling}
    return {"dataset": "unknown", "fit": "square", **metadata, **own}


def resize_matrix(side: int, res: int, resampling: str) -> np.ndarray:  # (res, side) float32
    """Return the shares of a square box's `side` rows (or columns) in the `res` that it is resized to.

    They are what crop_resize_normalize makes of single pixels, so that there is one rule: in images of `side` rows and
    res columns, columns stay as they are, so that each shows the shares of another row.
    """
    matrix, out = np.empty((res, side), np.float32), np.empty((1, 3 * res * res), np.float32)
    box, sides = np.array([[0, 0, side, res]], np.int32), (np.array([side]), np.array([res]))
    unchanged = np.zeros(3, np.float32), np.ones(3, np.float32)
    for first in range(0, side, res):
        image, row = np.zeros((side, res, 3), np.uint8), np.arange(first, min(first + res, side))
        image[row, row - first] = 1
        address, flip = np.array([image.ctypes.data], np.uint64), np.zeros(1, np.bool_)
        crop_resize_normalize(address, *sides, box, flip, *unchanged, out, res, resampling == "area")
        matrix[:, row] = out.reshape(3, res, res)[0, :, : len(row)]
    return matrix


def bicubic_matrix(side: int, res: int) -> np.ndarray:  # (res, side) float64, whole multiples of 2 ** -22
    """Return the shares of `side` rows (or columns) in the `res` that Pillow's bicubic resizing gives them.

    Pillow sums pixels times whole numbers, rounds, and clips to 0-255 after each of the two directions
    (src/libImaging/Resample.c). In float64 the sums are exact.
    """
    scale = side / res
    stretch, matrix = max(scale, 1.0), np.zeros((res, side))
    for row in range(res):
        center, support = (row + 0.5) * scale, 2 * stretch
        low, high = max(0, int(center - support + 0.5)), min(side, int(center + support + 0.5))
        x = np.abs((np.arange(low, high) - center + 0.5) / stretch)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        shares = weights / weights.sum() * 2**22
        matrix[row, low:high] = np.trunc(shares + np.copysign(0.5, shares)) / 2**22
    return matrix


def _fit_matrices(size: tuple[int, int], res: int, fit: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the matrices by which fit_image scales images of this size, None if it leaves them as they are."""
    shape = size if fit == "none" else fitted(*size, res, cast(Fit, fit))
    if shape == size:
        return None
    rows, columns = np.zeros((shape[0], size[0])), np.zeros((shape[1], size[1]))
    for matrix in (rows, columns):
        given = min(size) if fit == "square" else matrix.shape[1]
        first = (matrix.shape[1] - given) // 2
        matrix[:, first : first + given] = bicubic_matrix(given, len(matrix)) if given != len(matrix) else np.eye(given)
    return rows, columns.T


def _constants(model: MLP, size: tuple[int, int], fit: str, mean: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tensors of the graph: the weights under their names, and those by which pixels are prepared."""
    fitting = {}
    if matrices := _fit_matrices(size, model.res, fit):
        fitting = {"fit_rows": matrices[0], "fit_columns": matrices[1], "half": np.array(0.5)}
        fitting |= {"black": np.array(0.0), "white": np.array(255.0)}
        size = len(matrices[0]), matrices[1].shape[1]
    boxes, _ = draw_params(Augment("center"), *size, 0, 0, np.arange(1))
    top, left, side, _ = boxes[0]
    shares = resize_matrix(side, model.res, model.resampling)
    rows, columns = np.zeros((model.res, size[0]), np.float32), np.zeros((size[1], model.res), np.float32)
    rows[:, top : top + side], columns[left : left + side] = shares, shares.T
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    return {
        **fitting,
        "rows": rows,
        "columns": columns,
        "mean": mean[:, None, None],
        "std": std[:, None, None],
        **{name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()},
    }


def _to_bytes(
    onnx: Any, model: MLP, size: tuple[int, int], constants: dict[str, np.ndarray], description: dict[str, Any]
) -> bytes:
    """Return the content of the file."""
    helper, kinds = onnx.helper, onnx.TensorProto
    images = helper.make_tensor_value_info("images", kinds.UINT8, ["batch", *size, 3], "RGB, 0-255")
    outputs = [
        helper.make_tensor_value_info(name, kinds.FLOAT, ["batch", model.num_classes])
        for name in ("logits", "probabilities")
    ]
    imports = [helper.make_opsetid("", OPSET)]
    content = helper.make_model(
        helper.make_graph(_nodes(onnx, model, "fit_rows" in constants), str(model.arch), [images], outputs),
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),  # older programs read it, too
        producer_name="fastmlp",
        producer_version=__version__,
    )
    for name, array in constants.items():  # one at a time: each call copies what it is given
        content.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    helper.set_model_props(content, {name: _as_text(value) for name, value in description.items()})
    return content.SerializeToString()


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.encode("utf-8", errors="backslashreplace").decode()  # names of folders may hold any byte


def _nodes(onnx: Any, model: MLP, is_fitted: bool) -> list[Any]:
    """Return the operations from "images" to "logits" and "probabilities"; inputs that no node makes are _constants."""
    kinds = onnx.TensorProto
    nodes: list[Any] = []

    def add(operation: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{operation}_{len(nodes)}"
        nodes.append(onnx.helper.make_node(operation, inputs, [output], output, **attributes))
        return output

    def linear(x: str, name: str, output: str = "") -> str:
        return add("Gemm", x, f"{name}.weight", f"{name}.bias", output=output, transB=1)

    def rounded(x: str) -> str:
        return add("Clip", add("Floor", add("Add", x, "half")), "black", "white")

    planes = add("Transpose", "images", perm=[0, 3, 1, 2])
    if is_fitted:  # columns first, as Pillow
        across = rounded(add("MatMul", add("Cast", planes, to=kinds.DOUBLE), "fit_columns"))
        planes = rounded(add("MatMul", "fit_rows", across))
    planes = add("Cast", planes, to=kinds.FLOAT)
    resized = add("MatMul", "rows", add("MatMul", planes, "columns"))
    z = linear(add("Flatten", add("Div", add("Sub", resized, "mean"), "std"), axis=1), "linear_in")
    for number, (norm, block) in enumerate(zip(model.layernorms, model.blocks, strict=True)):
        own, normed = f"layernorms.{number}", z
        affine = z, f"{own}.weight", f"{own}.bias"
        if model.arch.norm == "layer":
            normed = add("LayerNormalization", *affine, epsilon=norm.eps)
        elif model.arch.norm == "batch":
            normed = add("BatchNormalization", *affine, f"{own}.running_mean", f"{own}.running_var", epsilon=norm.eps)
        if isinstance(block, BottleneckBlock):
            act = add("Gelu", linear(normed, f"blocks.{number}.block.0"))
            z = add("Add", z, linear(act, f"blocks.{number}.block.2"))
        else:
            z = add("Relu", linear(normed, f"blocks.{number}"))
    add("Softmax", linear(z, "linear_out", output="logits"), output="probabilities", axis=1)
    return nodes


def main() -> None:
    parser = argparse.ArgumentParser("python -m fastmlp.models.onnx_export", description=cli.summary(__doc__))
    parser.add_argument("weights", help="a trained model, .pt or .safetensors, or the name of released weights")
    parser.add_argument("out", type=cli.path, help="the file to write, .onnx")
    parser.add_argument(
        "--input-size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="side of the images that it will be given, or their height and width (default: the model's)",
    )
    parser.add_argument(
        "--fit",
        choices=("auto", *FITS, "none"),
        default="auto",
        help="how they are scaled to the model's size: square and longest as by the writers, auto as the model was "
        "trained, none as in a beton of another size (default: %(default)s)",
    )
    options = parser.parse_args()
    sides = options.input_size
    path = export_onnx(options.weights, options.out, sides[0] if sides and len(sides) == 1 else sides, fit=options.fit)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")


if __name__ == "__main__":
    cli.run(main)
