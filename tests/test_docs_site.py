"""What makes the site of the pages and docstrings: where links lead there, and how a docstring reads."""

import importlib.util

import pytest
from conftest import ROOT


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "page, target, site_target",
    [
        ("README.md", "docs/gpu.md#kernels", "gpu.md#kernels"),
        ("README.md", "docs/images/loader.png", "images/loader.png"),
        ("README.md", "CONTRIBUTING.md", "contributing.md"),
        ("README.md", "LICENSE", None),
        ("README.md", "#pages", "#pages"),
        ("README.md", "https://ffcv.io", "https://ffcv.io"),
        ("CONTRIBUTING.md", "docs/architecture.md", "architecture.md"),
        ("recipes/studies/README.md", "../../docs/scaling-studies.md", "scaling-studies.md"),
        ("recipes/studies/README.md", "kinds.yaml", None),
        ("docs/gpu.md", "limitations.md", "limitations.md"),
        ("docs/gpu.md", "../README.md#measured", "index.md#measured"),
        ("docs/gpu.md", "../recipes/studies/README.md", "studies.md"),
        ("docs/gpu.md", "../fastmlp/device.py", None),
    ],
)
def test_links_lead_to_the_same_page_on_the_site(page, target, site_target):
    assert script("docs_pages").site_target(page, target) == site_target


DOCSTRING = """Write images, fitted to res px.

    One paragraph: not a list. res: side
    of the images in px. seed: of the order (None
    keeps it). on_error: "stop".

    Others:
      fname: a beton.
      order: RANDOM
        or not.

    Raises ValueError.
    """


def test_what_a_docstring_says_of_parameters_becomes_a_list():
    names = ("fname", "res", "seed", "on_error", "order", "count")
    comments = script("docs_docstrings").comments_in(
        ["def write(", '    fname: str = "#",  # (N,)', "    *count: int,  # of images", "    other=1,  # of another"],
        names,
    )
    assert comments == {"fname": "(N,)", "count": "of images"}
    assert script("docs_docstrings").as_markdown(DOCSTRING, names, {"count": "of images"}) == (
        "Write images, fitted to res px.\n\n- **count**: of images\n\n    One paragraph: not a list.\n\n"
        '- **res**: side of the images in px.\n- **seed**: of the order (None keeps it).\n- **on_error**: "stop".\n\n'
        "    Others:\n\n- **fname**: a beton.\n- **order**: RANDOM or not.\n\n    Raises ValueError."
    )
