"""What tests of the documentation read out of markdown: blocks, headings, links, tables.

Headings are named as GitHub links to them.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")])


def name(page):
    return str(page.relative_to(ROOT))


def blocks(text):
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text):
    """What is left without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text):
    """The code within sentences; a line may end inside."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(text))]


def anchors(text):
    """How a link names each heading: in lower case, without signs, with - for spaces."""
    found, made = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE), []
    for heading in found:
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(
            re.fullmatch(re.escape(anchor) + r"(-\d+)?", other) is not None for other in made
        )
        made.append(f"{anchor}-{again}" if again else anchor)
    return made


def links(text):
    """The targets of links that are no addresses on the net."""
    plain = re.sub(r"`[^`]*`", "", prose(text))
    found = re.findall(r"\]\(([^)\s]+)\)", plain)
    return [target for target in found if not re.match(r"\w+:", target)]


def tables(text):
    """Each table as a list of rows, each row as a list of cells; the first row has the heads."""
    found = re.findall(r"(?:^\|.*\|\n)+", prose(text), re.MULTILINE)
    cells = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in row] for row in [table[0], *table[2:]]] for table in cells]
