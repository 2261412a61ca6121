"""MkDocs hook: brings files from outside of docs/ into the site, and the links to them.

Pages link to them by relative paths, ../benchmarks/results/plan.md, which work where the repository
is browsed. Results, with their pictures, and the Markdown files at the top become pages of the
site. Links to other files, such as code, become plain text there. A link to what doesn't exist is a
warning, which ends a strict build.
"""

import logging
import pathlib
import re

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ("*/results/*.md", "*/results/*.png", "benchmarks/gpu/README.md", "C*.md", "SECURITY.md")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")
_log = logging.getLogger("mkdocs.hooks.site_files")


def _pages() -> list[str]:
    return sorted({str(p.relative_to(ROOT)) for glob in PAGES for p in ROOT.glob(glob)})


def on_files(files: Files, *, config, **_: object) -> Files:
    """Adds the pages."""
    for path in _pages():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page, **_: object) -> str:
    """Rewrites the links that lead out of docs/."""
    if page.file.generated_by:
        return markdown.replace("](docs/", "](")

    def rewritten(link: re.Match[str]) -> str:
        mark, text, path, anchor = link[1], link[2], link[4], link[5] or ""
        if not (ROOT / path).exists():
            _log.warning("%s links to %s, which doesn't exist", page.file.src_path, path)
        return f"{mark}[{text}]({path}{anchor})" if path in _pages() else text

    return _LINK.sub(rewritten, markdown)
