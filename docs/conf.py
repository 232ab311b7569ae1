"""Settings of Sphinx, which makes a site of these pages (`make docs`).

The pages are plain markdown and read as well without it. Two things are made while Sphinx builds,
so that nothing is kept twice: the table of contents, from the links of index.md, and the tables of
settings.md, from moco_jax/config/settings.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from moco_jax.config.settings import SETTINGS

DOCS = Path(__file__).resolve().parent
INIT = DOCS.parent / "moco_jax" / "__init__.py"

project = "moco_jax"
version = release = re.findall(r'__version__ = "(.+)"', INIT.read_text())[0]
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # a link to a heading is checked, and named as on GitHub
highlight_language = "none"
html_theme = "furo"
html_title = f"moco_jax {version}"
html_copy_source = False
html_show_copyright = False


def contents(index: str, pages: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The table of contents: each section of the markdown `index`, and the pages it links to.

    Only links in points of lists count. Pages among `pages` (names without `.md`) that no section
    links to come last, so that no page is lost.
    """
    left = sorted(set(pages) - {"index"})
    sections: list[tuple[str, list[str]]] = []
    for title, text in re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", index, re.MULTILINE):
        found = re.findall(r"^- \[.+?\]\((\w+)\.md\)", text, re.MULTILINE)
        left = [page for page in left if page not in found]
        sections.append((title, found))
    return [section for section in [*sections, ("More", left)] if section[1]]


def settings_table(group: str) -> str:
    """The settings of a `group`, 'recipe' or 'operational', as a table in markdown."""
    lines = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for setting in SETTINGS.values():
        if setting.group == group:
            meaning = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", setting.meaning.replace("|", r"\|"))
            cells = f"`{setting.name}`", f"`{setting.default!r}`", setting.allowed, meaning
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def on_source_read(app, name: str, texts: list[str]) -> None:
    """Put into a page what is made for it."""
    if name == "index":
        pages = [path.stem for path in DOCS.glob("*.md")]
        for title, found in contents(texts[0], pages):
            lines = "\n".join(found)
            texts[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{lines}\n```\n"
    if name == "settings":
        for group in ("recipe", "operational"):
            texts[0] = texts[0].replace(f"<!-- {group.upper()} -->", settings_table(group))


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", on_source_read)
    app.connect("env-get-outdated", lambda *_: ["index", "settings"])
