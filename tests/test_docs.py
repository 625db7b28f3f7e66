"""Every page is in the list of pages, and every link leads somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "docs" / "README.md"
FENCED = re.compile(r"```.*?```", re.DOTALL)
PAGES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, timeout=30
    ).stdout.split()
]


def links_of(page: Path) -> list[tuple[Path, str]]:
    """Files and anchors that a page links to; not those of the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text()))
    parts = [link.partition("#") for link in found if not link.startswith(("http", "mailto"))]
    return [((page.parent / file).resolve() if file else page, name) for file, _, name in parts]


def anchors_of(page: Path) -> set[str]:
    """What its headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.skipif(not PAGES, reason="needs a git checkout")
def test_every_link_leads_somewhere():
    lost = [
        f"{page.relative_to(ROOT)}: {file}#{anchor}"
        for page in PAGES
        for file, anchor in links_of(page)
        if not file.exists() or (anchor and anchor not in anchors_of(file))
    ]
    assert lost == []


def test_every_page_is_listed():
    listed = {file for file, _ in links_of(LIST)}
    pages = {page.resolve() for page in (ROOT / "docs").glob("*.md")} - {LIST.resolve()}
    assert len(pages) > 20 and pages <= listed, sorted(pages - listed)
    assert {ROOT / "docs" / "decisions", ROOT / "docs" / "benchmarks" / "README.md"} <= listed
    assert LIST in {file for file, _ in links_of(ROOT / "README.md")}
