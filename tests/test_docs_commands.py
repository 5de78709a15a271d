"""The commands of README.md, docs/ and the other pages run as a reader runs them, and print what the pages say.

Blocks marked `<!-- slow -->` run with FASTMLP_DOCS=all, as scripts/torture.sh sets it (documentation.py has the marks).
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from documentation import Block, masked, missing_output, name_of, pages, read_blocks
from page_sandbox import RUNNING, Sandbox

WRITER = "writers/fashion_mnist.py --res 16"
WITH_SLOW = os.environ.get("FASTMLP_DOCS") == "all"


@pytest.fixture(scope="session")
def betons(tmp_path_factory) -> Path:
    """Fashion-MNIST of 16 px, which many pages write first."""
    folder = tmp_path_factory.mktemp("betons")
    command = [sys.executable, ROOT / "writers" / "fashion_mnist.py", "--res", "16", "--out", folder]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_the_commands_of_a_page_run(page, tmp_path, request):
    assert RUNNING not in os.environ, "a page runs the tests of the pages: mark that block `not run`"
    blocks = read_blocks(page)
    if any(block.is_run(WITH_SLOW) for block in blocks):
        with Sandbox(tmp_path) as sandbox:
            for block in blocks:
                if not WITH_SLOW and page.name != "writers.md" and WRITER in block.code:
                    shutil.copytree(request.getfixturevalue("betons"), sandbox.folder / "data", dirs_exist_ok=True)
                if block.is_run(WITH_SLOW):
                    sandbox.run(block)


def test_no_two_pages_train_into_one_folder():
    """A reader of both would be refused, since the run is finished."""
    of_folder: dict[str, set[str]] = {}
    for page in pages():
        for block in read_blocks(page):
            for name in re.findall(r"run_dir=[\"']?([\w./-]+)", block.code):
                of_folder.setdefault(name, set()).add(name_of(page))
    assert {name: names for name, names in of_folder.items() if len(names) > 1} == {}
    assert len(of_folder) > 5


# --- what runs them, seen on small pages


@pytest.fixture
def page(tmp_path) -> Callable[[str], Path]:
    """page(text): a page with this text, ~~~ for the fences."""

    def write(text: str) -> Path:
        path = tmp_path / "page.md"
        path.write_text(text.replace("~~~", "```"))
        return path

    return write


@pytest.fixture
def run(page, tmp_path) -> Callable[..., list[Block]]:
    """run(text): runs a page's blocks, and returns them."""

    def run_all(text: str, slow: bool = False, timeout_s: float = 20) -> list[Block]:
        blocks = [block for block in read_blocks(page(text)) if block.is_run(slow)]
        with Sandbox(tmp_path / f"sandbox-{slow}") as sandbox:
            for block in blocks:
                sandbox.run(block, timeout_s)
        return blocks

    return run_all


PAGE = """# A page

~~~bash
mkdir runs
echo "runs/first: 1,234 images, -0.5 %" | tee runs/log   # a comment
~~~

<!-- output -->
~~~text
runs/first: 99 images, 12.25 %
~~~

~~~python
import os

seen = open("runs/log").read()
~~~
1. In a list:

   <!-- slow -->
   ~~~bash
   cat <<END >runs/slow
   indented
   END
   ~~~

~~~python
print(len(seen), os.listdir("runs"))
~~~
<!-- output -->
~~~text
...
34 ['log']
~~~
<!-- not run: a network: nothing answers -->
~~~bash
curl https://example.invalid
~~~
~~~text
false
~~~
"""


def test_blocks_run_in_order_in_one_folder_and_one_namespace(run, page, tmp_path):
    blocks = run(PAGE)
    assert [(block.language, block.line) for block in blocks] == [("bash", 3), ("python", 13), ("python", 27)]
    assert (tmp_path / "sandbox-False/fastmlp/runs/log").is_file()
    with pytest.raises(AssertionError, match=r"page.md:27 does not print\n# \['log'\]"):
        run(PAGE, slow=True)
    assert (tmp_path / "sandbox-True/fastmlp/runs/slow").read_text() == "indented\n"
    never = [block for block in read_blocks(page(PAGE)) if block.needs]
    assert [block.needs for block in never] == ["a network: nothing answers"] and not never[0].is_run(slow=True)


@pytest.mark.parametrize(
    "block, problem",
    [
        ("~~~bash\nfalse | cat\n~~~", "page.md:1 ends with exit code 1"),
        ("~~~bash\necho $nothing\n~~~", "unbound variable"),
        ("~~~bash\ncat missing; true\n~~~", "No such file"),
        ("~~~bash\nsleep 9 & sleep 9\n~~~", "page.md:1 takes longer than 1 s"),
        ("~~~python\n\nraise ValueError('as it is')\n~~~", 'page.md", line 3.*\n.*\n?ValueError: as it is'),
        ("~~~python\nwhile True:\n    pass\n~~~", "page.md:1 takes longer than 1 s"),
        ("~~~python\nimport os\nos._exit(0)\n~~~", "page.md:1 fails"),
        ("~~~bash\necho b; echo a\n~~~\n<!-- output -->\n~~~text\na\nb\n~~~", "page.md:1 does not print\na\nbut\nb\na"),
    ],
)
def test_what_fails_is_told(run, block, problem):
    with pytest.raises(AssertionError, match=problem):
        run(block, timeout_s=1)


def test_the_folder_looks_like_a_clone(run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in [ROOT, ROOT / "docs", ROOT / "scripts", ROOT / "README.md"]}
    run(
        """
~~~bash
scripts/setup.sh --extras dev
source .venv/bin/activate
python writers/synthetic.py --train-images 20 --test-images 10 --res 8
ls data/*.beton README.md
echo >>README.md
touch docs/new.md ~/at-home
git config blame.ignoreRevsFile .git-blame-ignore-revs
~~~
<!-- output -->
~~~text
data/synthetic_test_8.beton
data/synthetic_train_8.beton
README.md
~~~
~~~python
import fastmlp, sys
print(fastmlp.__file__, sys.prefix)
~~~
""".replace("data/synthetic_test_8.beton\ndata/synthetic_train_8.beton\nREADME.md", "README.md")
    )
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (tmp_path / "sandbox-False/home/at-home").is_file()


def test_no_command_can_reach_out_of_the_folder(tmp_path):
    """By a link to the tests' environment, scripts/setup.sh once cleared it."""
    with Sandbox(tmp_path / "sandbox") as sandbox:
        links = [path for path in sandbox.folder.rglob("*") if path.is_symlink()]
        outside = [path for path in links if not path.resolve().is_relative_to(sandbox.folder)]
        assert {path.parent.name for path in outside} <= {"bin"}  # the interpreter itself
        assert not any(path.resolve().is_relative_to(sys.prefix) or path.resolve().is_dir() for path in outside)
        searched = sandbox.environment["PATH"].split(os.pathsep)
        assert not any(Path(folder).resolve().is_relative_to(sys.prefix) for folder in searched)


def test_a_page_cannot_run_the_pages():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "page_run and README"]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, RUNNING: "1"}, capture_output=True, text=True)
    assert ended.returncode == 1 and "mark that block `not run`" in ended.stdout


@pytest.mark.parametrize(
    "text, mistake",
    [
        ("~~~bash\necho\n", "page.md:1: the fence is not closed"),
        ("<!-- slwo -->\n~~~bash\necho\n~~~", "none of slow, output, not run"),
        ("<!-- not run: -->\n~~~bash\necho\n~~~", "none of slow, output, not run"),
        ("<!-- output -->\n~~~text\n1\n~~~", "after commands"),
        ("~~~bash\necho\n~~~\n<!-- output -->\n~~~bash\n1\n~~~", "before a text fence"),
    ],
)
def test_marks_that_mean_nothing_are_refused(page, text, mistake):
    with pytest.raises(ValueError, match=mistake):
        read_blocks(page(text))


@pytest.mark.parametrize(
    "said, printed",
    [
        ("top-1 90.26%  (10,000 images)", "top-1   8.1% (200 images)"),
        ("runs/first-20261124-115251: 194 MB", "runs/first-20270101-000000: 1.2 GB"),
        ("9,875 images/sec in 1.5 s", "12 k images/sec in 20 ms"),
        ("loss -1e-05 (±0.3)", "loss 2 (±1)"),
        ("sha256 0123456789abcdef01", "sha256 ffffffffffffffff9a"),
    ],
)
def test_numbers_may_differ(said, printed):
    assert masked(said) == masked(printed) and missing_output(said, printed) == ""


@pytest.mark.parametrize(
    "said, printed, missing",
    [
        ("a\nb", "x\na\n\nb\ny", ""),
        ("a\n...\nd", "a\nb\nc\nd", ""),
        ("...\nd\n...", "c\nd\ne", ""),
        ("a\nc", "a\nb\nc", "a"),
        ("c\n...\na", "a\nb\nc", "a"),
        ("a\nx", "a\nb", "x"),
        ("5 images", "5 image", "# images"),
        ("top-1 5%", "top-5 5%", ""),
        ("test top-1 5%", "top-1 5%", "test top# #%"),
    ],
)
def test_output_is_a_part_of_what_is_printed(said, printed, missing):
    assert missing_output(said, printed) == missing
