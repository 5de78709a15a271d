"""How the site shows this project's docstrings, for griffe: parameters as a list, with the comments beside them.

A docstring explains a parameter by `name: what it is`, at the beginning of a line or after a sentence; shapes and units
also stand in comments: `samples: np.ndarray,  # (B,) sample indices`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

try:
    from griffe import Docstring, Extension
except ModuleNotFoundError:  # in the tests, which have no griffe
    Docstring, Extension = None, object  # type: ignore[assignment,misc]

_COMMENT = re.compile(r"^\s*\**(?P<name>\w+)\s*[:,=].*?[^'\"]\s\s#\s*(?P<text>.+?)\s*$")


def as_markdown(text: str, names: Iterable[str], comments: Mapping[str, str]) -> str:
    """Return a docstring whose explanations of `names` are lists; `comments` follow its first paragraph."""
    marks = re.compile(rf"(?:^\s*|(?<=[.)]) )({'|'.join(map(re.escape, names)) or '(?!)'}): ", re.M)
    paragraphs = [_as_list(paragraph, marks) for paragraph in re.split(r"\n\s*\n", text.strip("\n"))]
    if comments:
        paragraphs.insert(1, "\n".join(f"- **{name}**: {comment}" for name, comment in comments.items()))
    return "\n\n".join(paragraphs)


def _as_list(paragraph: str, marks: re.Pattern[str]) -> str:
    before, *rest = marks.split(paragraph)
    items = [f"- **{name}**: {' '.join(text.split())}" for name, text in zip(rest[::2], rest[1::2], strict=True)]
    parts = [before.rstrip(), "\n".join(items)]
    return "\n\n".join(part for part in parts if part.strip())


def comments_in(lines: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """Return the comments that stand behind these names, each on a line of its own."""
    known = set(names)
    found = (_COMMENT.match(line) for line in lines)
    return {match["name"]: match["text"] for match in found if match and match["name"] in known}


class Docstrings(Extension):  # type: ignore[misc,valid-type]
    """Rewrites the docstrings of functions and classes, and gives fields with a comment a docstring."""

    def on_function(self, *, func: Any, **_: Any) -> None:
        self._rewrite(func, [parameter.name for parameter in func.parameters], func)

    def on_class(self, *, cls: Any, **_: Any) -> None:
        fields = [name for name, member in cls.members.items() if not member.is_alias and member.is_attribute]
        init = cls.members.get("__init__")
        parameters = [parameter.name for parameter in init.parameters] if init else []
        self._rewrite(cls, [*fields, *parameters], init)

    def on_attribute(self, *, attr: Any, **_: Any) -> None:
        if attr.docstring is None and attr.lineno and attr.parent.is_class:
            if comment := comments_in(attr.lines, [attr.name]).get(attr.name):
                attr.docstring = Docstring(comment[0].upper() + comment[1:], parent=attr)

    def _rewrite(self, thing: Any, names: Sequence[str], function: Any) -> None:
        if thing.docstring is None:
            return
        lines: Sequence[str] = function.lines if function else ()
        head = next((n for n, line in enumerate(lines) if re.search(r":\s*(#.*)?$", line) and ")" in line), len(lines))
        comments = comments_in(lines[: head + 1], names)
        thing.docstring.value = as_markdown(thing.docstring.value, [n for n in names if n != "self"], comments)
