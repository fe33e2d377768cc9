"""Every snippet of the README and the docs runs, in the order in which a reader meets them."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from tvgrad.cli.main import main

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def snippets(document):
    return FENCE.findall((ROOT / document).read_text(encoding="utf-8"))


def run_document(document):
    for language, options, text in snippets(document):
        if language == "python":
            if (file := re.search(r"file=(\S+)", options)) is not None:
                Path(file.group(1)).write_text(text)
            exec(compile(text, f"<{document}>", "exec"), {"__name__": "__snippet__"})
        elif language == "bash":
            for line in text.splitlines():
                words = shlex.split(line, comments=True)
                if not words:
                    continue
                assert words[0] == "tvgrad", f"{document}: only tvgrad commands are run by this test: {line}"
                command(words[1:])
        else:
            raise AssertionError(f"{document}: a fenced block says python or bash, not {language!r}")


def command(words):
    code = None
    try:
        main(words)
    except SystemExit as end:
        code = end.code
    assert code in {0, None}, f"tvgrad {' '.join(words)} ended with {code}"


@pytest.fixture(scope="module")
def reader_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reader")


@pytest.mark.timeout(900)  # a page's commands all together
@pytest.mark.parametrize("document", DOCUMENTS)
def test_snippets_run(document, reader_folder, monkeypatch, capsys):
    if not snippets(document):
        pytest.skip("no snippets")
    monkeypatch.chdir(reader_folder)
    monkeypatch.setenv("TVGRAD_CACHE", str(reader_folder / "cache"))
    # `python` in a snippet is the one that the reader installed tvgrad in
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if document != "README.md" and not (reader_folder / "runs").exists():
        run_document("README.md")  # the docs go on with the README's runs
    run_document(document)
    assert "Traceback" not in capsys.readouterr().err
