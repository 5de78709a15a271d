"""What mkdocs is told of this repository: pages that stand outside of docs/, and where their links lead on the site.

A link to a page leads to that page; one to another file of the repository becomes plain text, since the site has no
such file. Headings get GitHub's anchors, so that one link serves both.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ADDED = {
    "index.md": "README.md",
    "studies.md": "recipes/studies/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
_SITE_NAMES = {source: name for name, source in ADDED.items()}
_source = "README.md"  # of the page that is being rendered


def on_config(config: Any) -> Any:
    """Add the anchors and the links to what renders a page."""
    from markdown import Extension
    from markdown.treeprocessors import Treeprocessor
    from pymdownx.slugs import slugify

    class Links(Treeprocessor):
        def run(self, root: Any) -> None:
            for element in root.iter():
                for name in ("href", "src"):
                    if target := element.get(name):
                        _lead(element, name, target)

    class Rendering(Extension):
        def extendMarkdown(self, md: Any) -> None:
            md.treeprocessors.register(Links(md), "repository_links", 10)  # between parsing and mkdocs's check

    config.mdx_configs["toc"] = {**config.mdx_configs.get("toc", {}), "slugify": slugify(case="lower")}
    config.markdown_extensions.append(Rendering())
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand outside of docs/."""
    from mkdocs.structure.files import File

    for name, source in ADDED.items():
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Remember which page it is, whose links are relative to its place in the repository."""
    global _source
    _source = ADDED.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return markdown


def site_target(source: str, target: str) -> str | None:
    """Return where a link of the file `source` leads on the site, None if the site has no such page."""
    if re.match(r"[a-z]+:|#", target):
        return target
    name, mark, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
    if path in _SITE_NAMES:
        return f"{_SITE_NAMES[path]}{mark}{anchor}"
    return f"{path.removeprefix('docs/')}{mark}{anchor}" if path.startswith("docs/") else None


def _lead(element: Any, name: str, target: str) -> None:
    """Change a link of the page that is being rendered."""
    found = site_target(_source, target)
    if found is not None:
        element.set(name, found)
    elif element.tag == "a":
        element.tag = "span"
        del element.attrib[name]
        element.set("title", target)
