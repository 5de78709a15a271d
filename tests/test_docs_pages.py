"""What each page of the documentation must be: begun alike, its commands tested, its flags and links there."""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import io
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml
from conftest import ROOT
from documentation import (
    OTHER_LANGUAGES,
    REASONS,
    RUN_LANGUAGES,
    anchors,
    code_spans,
    links,
    name_of,
    pages,
    prose,
    read_blocks,
)

from fastmlp.config import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig

README_LINES, README_WORDS = 150, 1200
MAX_NEVER_RUN = 10  # blocks of all pages together
PROMISE = "After this page you can "
SETTINGS = (PretrainConfig, FinetuneConfig, ProbeConfig, EvaluateConfig)
SCRIPT = re.compile(r"(?<![\w./-])(?:\./)?((?:writers|recipes|benchmarks|scripts)/[\w/]+\.(?:py|sh)|-m fastmlp[\w.]+)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
COMMAND = re.compile(
    r"^\s*(\$ |python3? |\.?/?(scripts|writers|recipes|benchmarks)/\S+\.(sh|py)|pip |source |torchrun )"
)


# --- how pages begin, and what their fences are


def form_mistakes(page: Path) -> list[str]:
    """Return what is wrong with a page's first lines and with its fences."""
    mistakes = []
    lines = [line for line in prose(page).splitlines() if line.strip() and not line.startswith("<!--")]
    if not lines or not lines[0].startswith("# "):
        mistakes.append("does not begin with a heading")
    elif name_of(page).startswith("docs/") and not "".join(lines[1:2]).startswith(PROMISE):
        mistakes.append(f"its first sentence is not {PROMISE!r}...")
    blocks = read_blocks(page)
    for block in blocks:
        if block.language not in RUN_LANGUAGES + OTHER_LANGUAGES:
            mistakes.append(f"line {block.line}: a fence of {block.language or 'no language'}")
        if block.comment and not block.is_command:
            mistakes.append(f"line {block.line}: <!-- {block.comment} --> before a fence that is never run")
        if block.needs and not re.match(rf"(an? )?({'|'.join(REASONS)})\b", block.needs):
            mistakes.append(f"line {block.line}: not run, but needs none of {', '.join(REASONS)}")
        if block.language == "text" and (hidden := [line for line in block.code.splitlines() if COMMAND.match(line)]):
            mistakes.append(f"line {block.line}: a command in a text fence, which is not run: {hidden[0]}")
    if name_of(page).startswith("docs/") and not any(block.is_run(slow=True) for block in blocks):
        mistakes.append("has no command that is run")
    return mistakes


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_pages_begin_alike_and_have_commands(page):
    assert form_mistakes(page) == []


def test_few_blocks_are_never_run():
    never = [f"{name_of(page)}: {block.needs}" for page in pages() for block in read_blocks(page) if block.needs]
    assert len(never) <= MAX_NEVER_RUN, never


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    assert len(text.split()) <= README_WORDS  # as wc -w counts them


# --- flags: explained by --help only, and named as they are


def module_of(script: str):
    """Return a script's module; `-m fastmlp...` names one of the package."""
    if script.startswith("-m "):
        return importlib.import_module(script[3:])
    spec = importlib.util.spec_from_file_location(f"script_{Path(script).stem}", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def help_of(script: str) -> str | None:
    """Return what a script prints for --help, None if what follows it goes to another program."""
    script = {"scripts/quickstart.sh": "recipes/pretrain.py", "scripts/gpu_check.sh": "scripts/gpu_check.py"}.get(
        script, script
    )
    if script == "scripts/setup.sh":
        return subprocess.run([ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
    if script.endswith(".sh") or (script.endswith(".py") and "argparse" not in (ROOT / script).read_text()):
        if "cli.parse" not in (ROOT / script).read_text() and "command.parser" not in (ROOT / script).read_text():
            return None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), mock.patch.object(sys, "argv", [script, "--help"]):
        with pytest.raises(SystemExit) as ended:
            module_of(script).main()
    assert not ended.value.code
    return printed.getvalue()


def flags_of(script: str) -> set[str] | None:
    text = help_of(script)
    return None if text is None else set(FLAG.findall(text)) | {"--help"}


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page's blocks, of which one may take several lines, and its code spans."""
    for block in read_blocks(page):
        if block.language == "bash":
            yield from block.code.replace("\\\n", " ").splitlines()
    yield from code_spans(page)


def flag_mistakes(page: Path) -> list[str]:
    """Return the scripts that a page names and that are not there, and the flags that they do not have."""
    mistakes = []
    for command in commands(page):
        for found in SCRIPT.finditer(command):
            script = found[1]
            if not script.startswith("-m ") and not (ROOT / script).is_file():
                mistakes.append(f"{script} is not there")
                continue
            own = re.split(r"[|;&>#]|" + SCRIPT.pattern, command[found.end() :], maxsplit=1)[0]
            flags, known = FLAG.findall(own), flags_of(script) if "-" in own else None
            mistakes += [f"{script} has no {flag}" for flag in flags if known is not None and flag not in known]
        if re.match(r"--\w", command) and command.split("=")[0].split()[0] not in every_flag():
            mistakes.append(f"no script has {command}")
    return mistakes


@functools.cache
def every_flag() -> set[str]:
    scripts = [path.relative_to(ROOT).as_posix() for folder in ("writers", "recipes") for path in folder_of(folder)]
    scripts += [path.relative_to(ROOT).as_posix() for path in folder_of("benchmarks") if has_main(path)]
    modules = ("beton.inspect", "data.preview", "evaluation.filters", "models.onnx_export", "training.report_page")
    scripts += ["scripts/setup.sh", "scripts/gpu_check.py", *(f"-m fastmlp.{name}" for name in modules)]
    return set().union(*(flags_of(script) or set() for script in scripts))


def folder_of(name: str) -> list[Path]:
    return sorted((ROOT / name).rglob("*.py")) if name == "recipes" else sorted((ROOT / name).glob("*.py"))


def has_main(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


def test_scripts_and_flags_exist():
    """One test for all pages, since each process that asks loads every script."""
    assert {name_of(page): found for page in pages() if (found := flag_mistakes(page))} == {}


def help_texts() -> dict[str, str]:
    """Return each setting's help text, without its default, by the text's own words."""
    fields = {field.metadata["help"]: field.name for kind in SETTINGS for field in dataclasses.fields(kind)}
    return {text: name for text, name in fields.items() if len(text.split()) > 5}


def repeated_helps(page: Path) -> list[str]:
    text = " ".join(page.read_text(encoding="utf-8").split())
    return [f"repeats --help on {name}" for said, name in help_texts().items() if said in text]


def test_every_setting_is_explained_by_help_and_there_only():
    for recipe, kind in zip(("pretrain", "finetune", "linear_probe", "evaluate"), SETTINGS, strict=True):
        text = " ".join(help_of(f"recipes/{recipe}.py").split())
        for field in dataclasses.fields(kind):
            assert f"--cfg.{field.name} " in text and " ".join(field.metadata["help"].split()) in text, field.name
    assert len(help_texts()) > 40
    assert {name_of(page): found for page in pages() if (found := repeated_helps(page))} == {}


# --- links


def link_mistakes(page: Path) -> list[str]:
    """Return the links that lead nowhere; those to other sites are not followed."""
    mistakes = []
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            if not target.startswith(("https://", "mailto:")):
                mistakes.append(f"{target} is not https")
            continue
        name, _, anchor = urllib.parse.unquote(target).partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or not (path == page or path.is_relative_to(ROOT)):
            mistakes.append(f"{target} is not there")
        elif anchor and (path.suffix != ".md" or anchor not in anchors(path)):
            mistakes.append(f"{target}: no such heading")
    return mistakes


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page):
    assert link_mistakes(page) == []


def external_links() -> set[str]:
    """Return the addresses of other sites: python tests/test_docs_pages.py prints them, to be tried by hand."""
    return {target for page in pages() for target in links(page) if re.match(r"[a-z]+:", target)}


def test_the_site_has_every_page():
    """docs/ and the pages that scripts/docs_pages.py adds, each once in the site's menu."""

    class Plain(yaml.SafeLoader):
        pass

    def leaves(entry: object) -> Iterator[str]:
        if isinstance(entry, dict | list):
            for one in entry.values() if isinstance(entry, dict) else entry:
                yield from leaves(one)
        else:
            yield str(entry)

    menu = sorted(leaves(yaml.load((ROOT / "mkdocs.yml").read_text(), Plain)["nav"]))
    added = module_of("scripts/docs_pages.py").ADDED
    assert menu == sorted([*added, *(path.name for path in (ROOT / "docs").glob("*.md"))])
    assert all((ROOT / source).is_file() for source in added.values())


# --- the checks see what they should

BAD = """Some text

# The heading

After this page you know.

~~~
python recipes/pretrain.py
~~~
<!-- not run: no time -->
~~~bash
python recipes/pretrain.py --cfg.lr=1 \\
    --cfg.rate=2 && python recipes/missing.py --flag
torchrun --nproc recipes/pretrain.py --config-file x.yaml   # --not-a-flag
python -m fastmlp.data.preview x --flip --flap | grep --color
~~~
<!-- slow -->
~~~text
python x.py
~~~
`python writers/folder.py --source ~/pets --sauce`, `--fit longest`, `--fat`; `--cfg.lr`.
The side of the images in the
beton [pixels], 0 for the data set's own.

[a](missing.md) [`b`](page.md#the-heading) ![c](../x.png) [d](page.md#nothing) <a href="http://x.org">e</a>
`[not](a-link.md)` [f](https://example.org/a#b "title") [g][h] [i](#b-c-1)

[h]: nowhere.md
## `b` C
## *B* c
"""


def test_the_checks_see_what_they_should(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(BAD.replace("~~~", "```"))
    assert form_mistakes(page) == [
        "does not begin with a heading",
        "line 7: a fence of no language",
        "line 11: not run, but needs none of GPU, network, licensed data, root",
        "line 18: <!-- slow --> before a fence that is never run",
        "line 18: a command in a text fence, which is not run: python x.py",
    ]
    assert flag_mistakes(page) == [
        "recipes/pretrain.py has no --cfg.rate",
        "recipes/missing.py is not there",
        "-m fastmlp.data.preview has no --flap",
        "writers/folder.py has no --sauce",
        "no script has --fat",
    ]
    assert repeated_helps(page) == ["repeats --help on res"]
    assert link_mistakes(page) == [
        "missing.md is not there",
        "../x.png is not there",
        "page.md#nothing: no such heading",
        "nowhere.md is not there",
        "http://x.org is not https",
    ]
    (tmp_path / "docs").mkdir()
    inner = ROOT / "docs" / "not-there.md"
    with mock.patch.object(Path, "read_text", lambda *_, **__: "# Heading\n\nAfter this page you know.\n"):
        assert form_mistakes(inner) == ["its first sentence is not 'After this page you can '...", NO_COMMAND]


NO_COMMAND = "has no command that is run"


if __name__ == "__main__":
    print(*sorted(external_links()), sep="\n")
