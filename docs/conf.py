"""How Sphinx makes a site of these pages, which are plain markdown and read as well without it (`make docs`).

Two things are made while it builds, so that nothing is kept twice: the table of contents, from the links of index.md,
and the tables of settings.md, from moco_jax/config.py with its comments. Nothing of the package is imported.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).resolve().parent
SETTINGS = DOCS.parent / "moco_jax" / "config.py"
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
    """The table of contents: titles of the sections of the markdown `index`, and the pages that each links to, in order.

    Only points of lists count. Those of `pages` (names without `.md`) that none has come last, so that no page is lost.
    """
    left = sorted(set(pages) - {"index"})
    sections: list[tuple[str, list[str]]] = []
    for title, text in re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", index, re.MULTILINE):
        found = re.findall(r"^- \[.+?\]\((\w+)\.md\)", text, re.MULTILINE)
        left = [page for page in left if page not in found]
        sections.append((title, found))
    return [section for section in [*sections, ("More", left)] if section[1]]


def settings(source: str, name: str) -> list[tuple[str, str, str]]:
    """Of the dictionary `name` in the text `source` of config.py: each setting, its default, and the comment beside it."""
    assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    chosen = next(node.value for node in assigned if getattr(node.targets[0], "id", "") == name)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT}
    return [
        (word.arg, ast.unparse(word.value), comments.get(word.value.end_lineno, ""))
        for word in chosen.keywords
    ]


def settings_table(source: str, name: str) -> str:
    """The same as a table in markdown."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for key, default, meaning in settings(source, name):
        linked = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", meaning.replace("|", r"\|"))
        lines.append(f"| `{key}` | `{default}` | {linked} |")
    return "\n".join(lines)


def on_source_read(app, name: str, texts: list[str]) -> None:
    """Put into a page what is made for it."""
    if name == "index":
        pages = [path.stem for path in DOCS.glob("*.md")]
        for title, found in contents(texts[0], pages):
            lines = "\n".join(found)
            texts[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{lines}\n```\n"
    if name == "settings":
        for kind in ("RECIPE", "OPERATIONAL"):
            table = settings_table(SETTINGS.read_text(), kind)
            texts[0] = texts[0].replace(f"<!-- {kind} -->", table)


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", on_source_read)
    app.connect("env-get-outdated", lambda *_: ["index", "settings"])
