"""The documentation as its tests read it: pages, their fenced blocks and what stands before them, links, headings.

The line directly before a fence may be a comment: `<!-- slow -->` (run by scripts/torture.sh only),
`<!-- not run: REASON -->`, or, before a text fence, `<!-- output -->`: what the block before it prints.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from conftest import ROOT

RUN_LANGUAGES = ("bash", "python")
OTHER_LANGUAGES = ("text", "yaml", "json", "diff")  # never run
REASONS = ("GPU", "network", "licensed data", "root")  # what a block that is never run needs
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,}) *(?P<language>[^`\s]*)[^`]*$")
_COMMENT = re.compile(r"^\s*<!--\s*(?P<text>.*?)\s*-->\s*$")
_LINK = re.compile(r"(?<!\\)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*(?P<target>\S+)", re.M)
_ATTRIBUTE = re.compile(r"<(?:a|img)\s[^>]*?(?:href|src)=\"(?P<target>[^\"]+)\"")


@dataclass
class Block:
    """A fenced block: its first line of code is `line` + 1."""

    page: Path
    line: int  # of the fence, from 1
    language: str
    comment: str  # directly before it, "" if there is none
    code: str
    outputs: list[str] = field(default_factory=list)  # what the page says that it prints

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def needs(self) -> str:
        """Why it is never run, "" if it is."""
        return self.comment.removeprefix("not run:").strip() if self.comment.startswith("not run:") else ""

    @property
    def is_command(self) -> bool:
        return self.language in RUN_LANGUAGES

    def is_run(self, slow: bool) -> bool:
        return self.is_command and (not self.comment or (slow and self.comment == "slow"))


def pages() -> list[Path]:
    """Return the pages that users read, in the order of names."""
    named = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "studies" / "README.md"]
    return [*named, *sorted((ROOT / "docs").glob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def read_blocks(page: Path) -> list[Block]:
    """Return the page's blocks; those of output are in the `outputs` of the block before them.

    Raises ValueError for a fence that is not closed, a comment that means nothing, output of nothing.
    """
    blocks: list[Block] = []
    for block in _fences(page):
        if block.comment == "output":
            if block.language != "text" or not blocks or not blocks[-1].is_command:
                raise ValueError(f"{block.place}: <!-- output --> stands before a text fence after commands")
            blocks[-1].outputs.append(block.code)
            continue
        if block.comment not in ("", "slow") and not block.needs:
            raise ValueError(f"{block.place}: the comment before it is none of slow, output, not run: REASON")
        blocks.append(block)
    return blocks


def _fences(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        number += 1
        if not opening:
            continue
        first, indent, ticks = number, opening["indent"], opening["ticks"]
        closing = re.compile(rf"^ *{ticks[0]}{{{len(ticks)},}} *$")
        while number < len(lines) and not closing.match(lines[number]):
            number += 1
        if number == len(lines):
            raise ValueError(f"{page.name}:{first}: the fence is not closed")
        comment = _COMMENT.match(lines[first - 2]) if first > 1 else None
        code = "".join(f"{line.removeprefix(indent)}\n" for line in lines[first:number])
        yield Block(page, first, opening["language"], comment["text"] if comment else "", code)
        number += 1


def prose(page: Path) -> str:
    """Return the page without its fenced blocks, each line in its place."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in _fences(page):
        end = block.line + block.code.count("\n")
        lines[block.line - 1 : end + 1] = [""] * (end + 2 - block.line)
    return "\n".join(lines) + "\n"


def code_spans(page: Path) -> list[str]:
    """Return what stands between single backticks in the prose."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


def links(page: Path) -> list[str]:
    """Return the targets of links and pictures, in order, without those in code."""
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", lambda code: f"`{'x' * len(code[0])}`", prose(page), flags=re.S)
    return [found["target"] for pattern in (_LINK, _REFERENCE, _ATTRIBUTE) for found in pattern.finditer(text)]


def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives the page's headings, and those of <a id> or <a name>."""
    found: dict[str, int] = {}
    names = set(re.findall(r"<a\s+(?:id|name)=\"([^\"]+)\"", prose(page)))
    for heading in re.findall(r"^#{1,6} +(.+?)[ #]*$", prose(page), re.M):
        text = _LINK.sub(lambda link: link["text"], heading).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"[*~]|(?<!\w)_|_(?!\w)", "", text)).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        names.add(f"{slug}-{count}" if count else slug)
    return names


# --- what a page says that a command prints, and what it prints

_MASKS = (
    re.compile(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{8,}\b"),  # checksums
    re.compile(
        r"[-+±]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?"
        r"(?:\s?(?:[kMGTP]i?)?(?=B\b|FLOP)|\s?[kMGTP](?=[\s,.;:)]|$)|\s?[mµn]?(?=s\b))?"
    ),
)


def masked(text: str) -> list[str]:
    """Return the lines that are not empty, each number with its sign and unit's prefix as #, runs of spaces as one."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for mask in _MASKS:
        lines = [mask.sub("#", line) for line in lines]
    return [line for line in lines if line]


def missing_output(said: str, printed: str) -> str:
    """Return the first line that a page says and a command does not print in that order, "" if it prints all.

    A line `...` stands for any number of lines; between two of them lines follow each other directly.
    """
    lines, position = masked(printed), 0
    for part in re.split(r"(?m)^\s*\.\.\.\s*$", said):
        wanted = masked(part)
        if not wanted:
            continue
        starts = range(position, len(lines) - len(wanted) + 1)
        start = next((one for one in starts if lines[one : one + len(wanted)] == wanted), None)
        if start is None:
            return next((line for line in wanted if line not in lines[position:]), wanted[0])
        position = start + len(wanted)
    return ""
