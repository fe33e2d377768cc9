"""What the site does besides Markdown: formulas become MathML, notebooks become pages. Nothing is fetched by a reader.

Formulas are written as GitHub renders them, `$...$` and `$$...$$`. Arithmatex finds them, in pages and in docstrings.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# what `> [!NOTE]` and `> **In short**` become, which GitHub shows as a box
SUMMARY = '<div class="admonition note">\n<p class="admonition-title">Note</p>\n<p><strong>In short</strong></p>'
# a minus after a relation or a bracket is a sign, which stands close to its number
SIGN = re.compile(r"(<mo[^>]*>(?:&#x02264;|&#x0003D;|&#x0005B;)</mo>)<mo>&#x02212;</mo>")
BAR = re.compile(r"<mo[^>]*>(&#x0007C;|&#x02016;)</mo>")  # of norms and sizes: without space of its own


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make a Markdown page of each notebook, its pictures beside it."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, resources = MarkdownExporter().from_filename(str(notebook.abs_src_path))
        place = Path(notebook.src_uri)
        pictures = {name: f"{place.stem}-{name}" for name in resources["outputs"]}
        for name, picture in pictures.items():
            uri = (place.parent / picture).as_posix()
            files.append(File.generated(config, uri, content=resources["outputs"][name]))
            text = text.replace(f"({name})", f"({picture})")
        files.append(File.generated(config, place.with_suffix(".md").as_posix(), content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links to notebooks lead to their pages, and title code by the file that it is saved as."""
    markdown = re.sub(r"^(```python) file=(\S+)$", r'\1 title="\2"', markdown, flags=re.MULTILINE)
    return re.sub(r"(\]\([^)\s:]+)\.ipynb\)", r"\1.md)", markdown)


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Write each formula as MathML, and give a summary its name as title."""
    content = content.replace(SUMMARY, '<div class="admonition abstract">\n<p class="admonition-title">In short</p>')

    def mathml(found: re.Match[str]) -> str:
        formula = html.unescape(found[2])
        try:
            written = convert(formula, display="block" if found[1] == "div" else "inline")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: the formula {formula} cannot be read: {error!r}") from error
        written = SIGN.sub(r'\1<mo form="prefix">&#x02212;</mo>', written)
        written = BAR.sub(r'<mo lspace="0" rspace="0" stretchy="false">\1</mo>', written)
        return f'<div class="formula">{written}</div>' if found[1] == "div" else written

    return FORMULA.sub(mathml, content)
