"""Every public name says what it does, with shapes, dtypes, units and errors: where its code shows that it has them."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest
from conftest import ROOT

import fastmlp
from fastmlp.cli import FloatField, IntField
from fastmlp.config import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig

ARRAY = re.compile(r"ndarray|Tensor")
ARRAY_NAMES = {"images", "source", "pipelines"}  # parameters that hold or make pixels, whatever their type
SHAPE = re.compile(r"\((?:[A-Z]|batch|num_classes|\d)[^()]*,[^()]*\)")
DTYPE = re.compile(r"\b(?:u?int(?:8|32|64)|float(?:32|64)|bool)\b")
UNITS = {  # what the docstring of everything with such a name must hold
    r"res|input_size|padding": r"\bpx\b|pixels",
    r"mean|std|metadata": r"0-255|0 to 255",
    r"\w+_bytes": r"\bbytes\b",
    r"seconds|\w+(?<!per)_s": r"\bseconds\b|\[s\]",
    r"images_per_s": r"images per second|images/sec",
    r"loss": r"\bnats\b",
    r"top1|top5|best_top1|interval|per_class_top1|shares|probability|probabilities|scores": r"0-1|0 to 1",
    r"\w*seed": r"\bseed",
    r"scale|ratio|center": r"share|area|ratio|times",
}
WITHOUT_UNIT = {  # settings that are numbers, but of nothing: powers, probabilities, factors, keys
    *("mixup_alpha", "lr", "weight_decay", "ema_decay", "label_smoothing", "clip_norm", "l2", "seed", "base_width"),
    *("min_crop_ratio", "max_crop_ratio"),
}
UNIT = re.compile(r"\[[a-z ]+\]|share|images|threads|minutes|steps|crops|number of|epochs")


def public_interface() -> Any:
    spec = importlib.util.spec_from_file_location("public_interface", ROOT / "scripts/public_interface.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def things() -> Iterator[tuple[str, Any, str]]:
    """Yield each public name with its function or class and its docstring; methods and properties, too."""
    names = {f"fastmlp.{name}": getattr(fastmlp, name) for name in set(fastmlp.__all__) - {"__version__"}}
    names |= {thing.__name__: thing for thing in public_interface().FURTHER}
    for name, thing in sorted(names.items()):
        if inspect.isclass(thing) and issubclass(thing, Enum):
            continue  # FFCV's own
        said = thing.__doc__ or ""
        yield name, thing, said
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                function = value.fget if isinstance(value, property) else value
                yield f"{name}.{member}", function, function.__doc__ or ""


THINGS = [pytest.param(thing, said, id=name) for name, thing, said in things()]


def typed_names(thing: Any) -> dict[str, str]:
    """Return the types of parameters and of what is returned, as text, by name; of a class those of its __init__."""
    function = thing.__init__ if inspect.isclass(thing) else thing
    types = {name: str(kind) for name, kind in inspect.get_annotations(function).items()}
    for name in inspect.signature(thing).parameters:
        types.setdefault(name, "")
    if "return" in types:
        types[thing.__name__] = types.pop("return")
    return {name: kind for name, kind in types.items() if name != "self"}


def mistakes(thing: Any, said: str) -> list[str]:
    """Return what the docstring `said` of a function or class does not hold."""
    found, types = [], typed_names(thing)
    if len(said.split()) < 3 or not said.rstrip().endswith((".", ")")):
        found.append("no sentence that explains it")
    for name, kind in types.items():
        if ARRAY.search(kind) or name in ARRAY_NAMES:
            found += [f"{name}: no shape"] * (not SHAPE.search(said)) + [f"{name}: no dtype"] * (not DTYPE.search(said))
        for pattern, unit in UNITS.items():
            if re.fullmatch(pattern, name) and not re.search(unit, said) and kind != "<class 'bool'>":
                found.append(f"{name}: no unit ({unit})")
    return found + [f"{error} is raised" for error in sorted(raised(thing)) if error not in said]


def raised(thing: Any) -> set[str]:
    """Return the names of the errors that its code raises, or that private functions of its file do which it calls."""
    start = thing.__init__ if inspect.isclass(thing) else thing
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        start = getattr(thing, "__post_init__", None)
    if start is None or not inspect.isfunction(start):
        return set()
    module, errors, seen, todo = sys.modules[thing.__module__], set(), set(), [start]
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                errors.add(ast.unparse(node.exc.func))
            elif isinstance(node, ast.Call):
                todo += called(node.func, module, thing)
    return errors - {"IsADirectoryError", "AssertionError"}  # an OSError, and ours


def called(name: ast.expr, module: Any, thing: Any) -> list[Callable]:
    """Return the private function of the module, or method of the class, that a call names."""
    if isinstance(name, ast.Name) and name.id.startswith("_"):
        owner, attribute = module, name.id
    elif isinstance(name, ast.Attribute) and ast.unparse(name.value) == "self" and inspect.isclass(thing):
        owner, attribute = thing, name.attr
    else:
        return []
    function = getattr(owner, attribute, None)
    return [function] if inspect.isfunction(function) else []


@pytest.mark.parametrize("thing, said", THINGS)
def test_each_public_name_says_what_it_takes_gives_and_raises(thing, said):
    assert mistakes(thing, said) == []


def test_the_check_sees_what_it_should():
    def crop(images: "np.ndarray", res: int, seed: int, in_bytes: int) -> "torch.Tensor":  # noqa: F821
        """Crop images."""
        if seed:
            raise OverflowError("too much")
        return _fail()

    assert mistakes(crop, crop.__doc__) == [
        "no sentence that explains it",
        *("images: no shape", "images: no dtype", r"res: no unit (\bpx\b|pixels)", r"seed: no unit (\bseed)"),
        *(r"in_bytes: no unit (\bbytes\b)", "crop: no shape", "crop: no dtype"),
        *("LookupError is raised", "OverflowError is raised"),
    ]
    said = "Crop (B, H, W, 3) uint8 images to res px, by a seed, in bytes. Raises LookupError, OverflowError."
    assert mistakes(crop, said) == []
    assert "ValueError" in raised(fastmlp.Loader) and "FileNotFoundError" in raised(fastmlp.load_model)


def _fail() -> Any:
    raise LookupError("nothing")


def test_every_number_among_the_settings_has_a_unit():
    numbers = 0
    for kind in (PretrainConfig, FinetuneConfig, ProbeConfig, EvaluateConfig):
        for field in dataclasses.fields(kind):
            checker, text = field.metadata["checker"], field.metadata["help"]
            assert len(text.split()) > 1 or text in ("optimiser", "architecture"), field.name
            if isinstance(checker, IntField | FloatField) and field.name not in WITHOUT_UNIT:
                numbers += 1
                assert UNIT.search(text), (field.name, text)
    assert numbers > 40
