"""Hooks of mkdocs: the generated pages of ``results/`` on the site, and mathematics as MathML, which needs no network."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent


def on_files(files, config):
    """Results lie beside docs/, so that links work on GitHub too; on the site they lie in results/."""
    for path in sorted((ROOT / "results").rglob("*")):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix().replace("README.md", "index.md")
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/ into results/ are one level shorter on the site."""
    markdown = re.sub(r"\]\(((?:\.\./)*)\.\./results/", r"](\1results/", markdown)
    return markdown.replace("results/README.md", "results/index.md")
