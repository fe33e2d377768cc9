"""Every snippet of the README and the docs runs, in the order in which a reader meets them, and prints what it says."""

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
SLOW = {"docs/tutorials/trace-my-script.md"}  # a dozen starts of Python; the how-to page has the same commands


def snippets(document):
    return FENCE.findall((ROOT / document).read_text(encoding="utf-8"))


def words(text):
    """Letters and signs of a text, whatever its numbers, spaces and rules are: what two machines print alike."""
    numbers = re.sub(r"[-+]?\d[\d.,]*(?:e[-+]\d+)?", "#", text.replace(f"{Path.cwd()}/", ""))
    return re.sub(r"#+", "#", re.sub(r"[\s\u2500-\u257f|]+", "", numbers))


def missing(shown, printed):
    """The lines of a block of output that a command did not print."""
    return [line for line in shown.splitlines() if line.strip() != "..." and words(line) not in words(printed)]


def run_document(document, printed=lambda: ""):
    told = ""
    for language, options, text in snippets(document):
        if language == "python":
            if (file := re.search(r"file=(\S+)", options)) is not None:
                Path(file.group(1)).write_text(text)
            exec(compile(text, f"<{document}>", "exec"), {"__name__": "__snippet__"})
        elif language == "bash":
            for line in text.splitlines():
                parts = shlex.split(line, comments=True)
                if not parts:
                    continue
                assert parts[0] == "tvgrad", f"{document}: only tvgrad commands are run by this test: {line}"
                command(parts[1:])
            told = printed()
        elif language == "text":  # what the commands above print
            assert missing(text, told) == [], f"{document}: not printed"
        else:
            raise AssertionError(f"{document}: a fenced block says python, bash or text, not {language!r}")


def command(parts):
    code = None
    try:
        main(parts)
    except SystemExit as end:
        code = end.code
    assert code in {0, None}, f"tvgrad {' '.join(parts)} ended with {code}"


def test_a_block_of_output_that_is_not_printed_is_found():
    printed = "\u2502 error \u2502 3.2e-05 \u2502\nthe error after 5 epochs is 0.15 % of it\n"
    assert missing("| error | 4.1e-05 |\n...\nthe error after 5 epochs\nis 0.16 % of it\n", printed) == []
    assert missing("the bound after 5 epochs\n", printed) == ["the bound after 5 epochs"]


@pytest.fixture(scope="module")
def reader_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reader")


@pytest.mark.timeout(900)  # a page's commands all together
@pytest.mark.parametrize(
    "document", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in DOCUMENTS]
)
def test_snippets_run(document, reader_folder, monkeypatch, capfd):
    if not snippets(document):
        pytest.skip("no snippets")
    monkeypatch.chdir(reader_folder)
    monkeypatch.setenv("TVGRAD_CACHE", str(reader_folder / "cache"))
    # `python` in a snippet is the one that the reader installed tvgrad in
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if document != "README.md" and not (reader_folder / "runs").exists():
        run_document("README.md")  # the docs go on with the README's runs
    monkeypatch.setenv("COLUMNS", "100")
    errors = []

    def printed():
        out, err = capfd.readouterr()
        errors.append(err)
        return out + err

    run_document(document, printed)
    printed()
    assert "Traceback" not in "".join(errors)
