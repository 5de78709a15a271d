"""Writes docs/public-interface.md: every public name with its signature, and every setting with its default.

    .venv/bin/python scripts/public_interface.py            # prints it
    .venv/bin/python scripts/public_interface.py --write

A test compares the page with the code, so that no public name changes unnoticed: a change is written here and in
CHANGELOG.md.
"""

import argparse
import dataclasses
import inspect
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import fastmlp
from fastmlp.config import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig
from fastmlp.transforms.augment_params import Augment
from fastmlp.transforms.pipelines import image_pipelines

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "public-interface.md"
HEAD = """# The public interface

After this page you can tell which names you may rely on. They change only with an entry in
[CHANGELOG.md](../CHANGELOG.md); everything else may change in any version. [api.md](api.md) explains them. The page is
written by `python scripts/public_interface.py --write`; without the flag it is printed:

```bash
python scripts/public_interface.py
```

"""
FURTHER = (Augment, image_pipelines)  # public names that are not of fastmlp itself
SETTINGS = {
    PretrainConfig: "`fastmlp.train`, `recipes/pretrain.py`",
    FinetuneConfig: "`fastmlp.finetune`, `recipes/finetune.py`; as pre-training, but for",
    ProbeConfig: "`fastmlp.linear_probe`, `recipes/linear_probe.py`; as fine-tuning, but for",
    EvaluateConfig: "`fastmlp.evaluate`, `recipes/evaluate.py`",
}


def page() -> str:
    """Return the page's text."""
    lines = ["```text"]
    for name in sorted(set(fastmlp.__all__) - {"__version__"}, key=str.lower):
        lines += [*describe(f"fastmlp.{name}", getattr(fastmlp, name)), ""]
    for thing in FURTHER:
        lines += [*describe(f"{thing.__module__}.{thing.__name__}", thing), ""]
    where_set = "As arguments, on the command line (`--cfg.epochs=30`) and in YAML files."
    text = HEAD + "\n".join(lines[:-1]) + f"\n```\n\n## Settings\n\n{where_set}\n"
    for settings, where in SETTINGS.items():
        text += f"\n{where}:\n\n```text\n" + "\n".join(describe_settings(settings)) + "\n```\n"
    return text


def describe(name: str, thing: Any) -> Iterator[str]:
    """Yield the signature of a function, or of a class and its public methods, properties and fields."""
    if not inspect.isclass(thing):
        yield f"{name}{signature(thing)}"
        return
    if issubclass(thing, Enum):
        yield f"{name}: {', '.join(member.name for member in thing)}"
        return
    yield f"{name}{signature(thing)}"
    for member, value in sorted(vars(thing).items()):
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            kind = value.fget.__annotations__.get("return", "")
            yield f"    .{member}: {kind.__name__ if inspect.isclass(kind) and not get_args(kind) else kind}"
        elif inspect.isfunction(value):
            yield f"    .{member}{signature(value)}"


def signature(thing: Any) -> str:
    """Return parameters with their defaults, without types: these may become wider."""
    found = inspect.signature(thing)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in found.parameters.items()
        if name != "self"
    ]
    return str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def describe_settings(settings: Any) -> Iterator[str]:
    """Yield each field with its default, without those that the parent class has with the same default."""
    above = (
        {field.name: field.default for field in dataclasses.fields(settings.__mro__[1])}
        if settings
        in (
            FinetuneConfig,
            ProbeConfig,
        )
        else {}
    )
    for field in dataclasses.fields(settings):
        if field.name not in above or above[field.name] != field.default:
            yield f"{field.name} = {field.default!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    text = page()
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
