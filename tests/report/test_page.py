"""The HTML page, the LaTeX tables and the summary: nothing from a run is trusted, and the words follow the numbers."""

import math
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from tvgrad.report.columns import COLUMNS
from tvgrad.report.empty_columns import missing_results
from tvgrad.report.latex import caption_of, latex_table
from tvgrad.report.page import html_page
from tvgrad.report.published import first_epoch_shares
from tvgrad.report.summary import summary_of

HARM = "<script>alert(1)</script>&\"'"


def tables(runs=("a", "b"), holds="exact", shares=((0.7, 0.3), (0.4, 0.6)), cosines=(0.99, 0.5), reason="fine"):
    norms, directions, equivalence = [], [], []
    for run, share, cosine in zip(runs, shares, cosines, strict=True):
        for group in ("all", "encoder.0"):
            norms += [(run, e, group, 1.0, 1.0, 1.0, share[e] if e < 2 else math.nan) for e in range(3)]
            directions += [(run, e, group, math.nan if e == 0 else cosine, 1.0, 1.0, 1.0, 0.1) for e in range(3)]
        answer = ("yes", 1e-6, 1.0, "") if holds == "exact" else ("no", 0.79, 0.61, "the cause")
        equivalence.append((run, "tau_1 = -lr g_0", holds, 0.9, 0.01, 0.0, reason, *answer, ""))
    cross = [(runs[0], runs[1], 2, "all", 0.25, 0.2, 0.5)]
    rows = {"norms": norms, "directions": directions, "equivalence": equivalence, "cross_task": cross}
    frames = {}
    for name, values in rows.items():
        frame = pd.DataFrame([dict(zip(needed(name), value, strict=True)) for value in values])
        frames[name] = frame.reindex(columns=list(COLUMNS[name]))
    return frames


def needed(name):
    """The columns that these tests fill, in the order above."""
    return {
        "norms": (
            "run",
            "epoch",
            "group",
            "gradient_norm",
            "task_vector_norm",
            "displacement_norm",
            "gradient_norm_share",
        ),
        "directions": (
            "run",
            "epoch",
            "group",
            "cos_task_vector_descent",
            "cos_gradient_first",
            "cos_task_vector_first",
            "cos_successive_displacements",
            "relative_residual",
        ),
        "equivalence": (
            "run",
            "rule",
            "holds",
            "worst_ratio_to_budget",
            "frozen_share",
            "gradient_relative_error",
            "reason",
            "gradient_holds",
            "deviation",
            "cosine",
            "cause",
            "trouble",
        ),
        "cross_task": ("run_a", "run_b", "epoch", "group", "cos_task_vectors", "cos_gradients", "sign_agreement"),
    }[name]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text, self.scripts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")
        self.links += [value for key, value in attrs if key in {"src", "href"}]

    def handle_data(self, data):
        if self.lasttag == "script" and self.cdata_elem:
            self.scripts[-1] += data
        else:
            self.text.append(data)


def parsed(page):
    parser = Tags()
    parser.feed(page)
    return parser


def test_the_page_escapes_and_needs_nothing_beside_it(tmp_path):
    figure = tmp_path / "shares.svg"
    figure.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    made = tables(runs=(HARM, "b"), reason=HARM)
    page = html_page(made, [(figure, HARM)], summary_of(made), f"Report {HARM}", "lead")
    parser = parsed(page)
    plain = parsed(html_page(tables(), [(figure, "c")], summary_of(tables()), "Report", "lead"))
    # The page has its own scripts, and no name adds one or ends one.
    assert parser.tags == plain.tags
    assert not any("<script" in script for script in parser.scripts)
    assert HARM in "".join(parser.text)
    sources = [link for link in parser.links if not link.startswith("#")]
    assert sources
    assert all(link.startswith("data:image/svg+xml;base64,") for link in sources)
    assert "@import" not in page
    assert re.findall(r"url\((?!data:)", page) == []


def test_groups_are_folded_away():
    page = html_page(tables(), [], [], "t", "l")
    assert page.count('<details class="groups">') == 2
    assert page.count('<details class="table"') == 4
    assert "By group of parameters (1 groups, 6 rows)" in page


def test_summary_counts_what_the_tables_say():
    text = " ".join(summary_of(tables()))
    assert "after the first epoch: yes for 2: at most 1e-06 away, cosine 1.00." in text
    assert "Optimizer step: exact for every run, within the rounding of one step" in text
    assert "largest in norm in 1 of 2 runs" in text
    assert "between 0.400 (b) and 0.700 (a)" in text
    assert "0.80 to 1.40 times an even share" in text
    assert "between 0.500 (b) and 0.990 (a); it is at least 0.95 in 1 of 2 runs" in text
    assert "no longer the first gradient" in text


def test_summary_of_failures_and_other_forms():
    failing = " ".join(summary_of(tables(holds="fails", reason="the weights moved")))
    assert failing.startswith("Task vector = -lr x full-batch gradient after the first epoch: no for 2 of 2 runs")
    assert "79 % away, cosine 0.61; the cause. Optimizer step: fails for a and b." in failing
    assert "The step fails for a and b: the weights moved." in failing
    assert "exact" not in failing
    other = " ".join(summary_of(tables(holds="does not apply", reason="adam divides", cosines=(0.99, 0.97))))
    assert "The gradient form does not apply for a and b: adam divides." in other
    assert "Next: `tvgrad explain RUN --recipe TARGET`" in other


def test_published_shares_are_those_of_the_paper():
    table = first_epoch_shares().set_index("data_set")
    assert table.loc["GTSRB", "share"] == 0.681
    assert dict(table["epochs"]) == {
        "CIFAR100": 6,
        "SVHN": 4,
        "RESISC45": 15,
        "MNIST": 5,
        "EuroSAT": 12,
        "GTSRB": 11,
        "DTD": 76,
    }


@pytest.mark.parametrize("name", ["norms", "directions", "equivalence", "cross_task"])
def test_latex_tables_are_balanced_and_captioned(name):
    text = latex_table(tables()[name], name)
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0].replace("\\midrule\n", "")
    shown = tables()[name].dropna(axis="columns", how="all")
    shown = shown.drop(columns=["reason", "cause", "trouble"], errors="ignore")
    columns = shown.shape[1] - ("group" in shown)
    assert caption_of(name, list(shown)) in text
    assert all(line.count("&") == columns - 1 for line in body.strip().splitlines())
    assert text.startswith("% packages: ")
    plain = re.sub(r"\$[^$]*\$", "", text.partition("\n")[2])
    assert not re.search(r"(?<!\\)[%#]|(?<!\\)_", plain.replace(r"\label{tab:cross-task}", ""))


def test_latex_escapes_what_comes_from_a_run():
    text = latex_table(pd.DataFrame([{"run": r"50%_#&{}$\~^|<>$x$", "epoch": 1}]), "norms")
    signs = (
        r"50\%\_\#\&\{\}\$\textbackslash \textasciitilde \textasciicircum "
        r"\textbar{}\textless{}\textgreater{}\$x\$"
    )
    assert f"\n{signs} & 1 \\\\\n" in text


def test_latex_of_many_epochs_and_of_none():
    epochs = [{"run": run, "epoch": e, "group": "all", "gradient_norm": 1.0 + e} for run in "ab" for e in range(30)]
    text = latex_table(pd.DataFrame(epochs), "norms")
    shown = [line.split(" & ")[:2] for line in text.splitlines() if re.match(r"[ab] & ", line)]
    assert shown == [[run, str(epoch)] for run in "ab" for epoch in (0, 1, 29)]
    assert "Epochs shown: 0, 1 and the last." in text
    pairs = [{"run_a": str(n), "run_b": "z", "epoch": e, "cos_gradients": -0.5} for n in range(50) for e in (1, 2)]
    text = latex_table(pd.DataFrame(pairs), "cross_task")
    assert text.count("& 2 &") == 50
    assert "& 1 &" not in text
    assert text.count(r"\begin{table}") == 2
    assert text.count(r"\label{tab:cross-task}") == 1
    assert "\\addtocounter{table}{-1}\n\\caption[]{Part 2 of 2.}" in text
    assert "& -0.5 " in text
    assert "S[table-format=-1.1]" in text
    empty = latex_table(pd.DataFrame(columns=list(COLUMNS["second_order"])), "second_order")
    assert empty == "% second_order has no rows: `tvgrad explain RUN` makes them\n"


def test_a_report_names_the_command_that_makes_what_it_lacks():
    made = tables()
    assert missing_results(made) == []
    made["second_order"] = pd.DataFrame([{"run": "a", "epoch": 1}])
    made["error_budget"] = pd.DataFrame(columns=list(COLUMNS["error_budget"]))
    found = missing_results(made)
    assert [sentence.split(":")[0] for sentence in found] == [
        "second_order has no rows of b",
        "error_budget has no rows of a and b",
    ]
    assert all("`tvgrad explain RUN`" in sentence for sentence in found)
    page = html_page(made, [], [], "t", "l")
    assert "second_order has no rows of b" in page
    (of_script, other) = missing_results(made, scripts=["b"])  # which `explain` needs no recipe for
    assert of_script.startswith("error_budget has no rows of b: `tvgrad explain RUN -- COMMAND` makes them")
    assert other.startswith("error_budget has no rows of a: `tvgrad explain RUN`")
    assert "tvgrad explain RUN -- COMMAND" in html_page(made, [], [], "t", "l", scripts=["b"])


def test_columns_without_anything_are_not_shown():
    page = html_page(tables(), [], [], "t", "l")
    assert 'data-name="gradient_norm_share"' in page
    assert 'data-name="mean_batch_gradient_norm"' not in page


def test_reasons_that_differ_in_numbers_are_said_once():
    made = tables(holds="does not apply")
    made["equivalence"]["reason"] = ["epoch 1 took 32 steps (1.2e+03)", "epoch 1 took 4 steps (9)"]
    sentences = [sentence for sentence in summary_of(made) if "does not apply" in sentence]
    assert len(sentences) == 1
    assert "for a and b. Of a: epoch 1 took 32 steps" in sentences[0]


def test_summary_of_the_published_measure_and_of_growing_gradients():
    made = tables()
    norms = made["norms"]
    norms["mean_batch_gradient_norm_share"] = norms["gradient_norm_share"].where(norms["run"] == "b")
    text = " ".join(summary_of(made))
    assert "recorded for 1 run, the first epoch's share is 0.400, that is 0.80 times an even share" in text
    assert "it is the largest in 0 of 1 run." in text
    assert "times as long" not in text
    assert "Published: the mean over an epoch's steps of the norm of the batch gradient" in text
    assert "Measured here: the norm of the full-batch gradient at the weights with which the epoch begins." in text
    assert "do not compare as numbers" in text
    norms.loc[(norms["run"] == "b") & (norms["epoch"] == 2), "gradient_norm"] = 7.0
    text = " ".join(summary_of(made))
    assert "more than 2 times as long as at the start for b (up to 7 times)" in text


def test_pictures_of_one_caption_share_it(tmp_path):
    paths = [tmp_path / f"{number}.svg" for number in range(3)]
    for path in paths:
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    page = html_page(tables(), [(paths[0], "of g_0 & tau_e"), *((path, "one") for path in paths[1:])], [], "t", "l")
    assert page.count("<figure") == 2
    assert page.count("<img") == 3
    assert page.count('class="picture family"') == 1
    assert "of <i>g</i><sub>0</sub> &amp; <i>τ</i><sub>e</sub>" in page


def test_tasks_are_compared_with_tasks_and_not_with_their_own_seeds():
    made = tables()
    assert any("Between tasks" in sentence for sentence in summary_of(made, {"a": "one", "b": "two"}))
    assert any("Between tasks" in sentence for sentence in summary_of(made))
    assert not any("Between tasks" in sentence for sentence in summary_of(made, {"a": "one", "b": "one"}))


def test_latex_rules_runs_apart_and_drops_rows_of_zeros():
    rows = [{"run": run, "epoch": e, "term": "t", "norm": float(e), "share": 0.5 * e} for run in "ab" for e in range(3)]
    text = latex_table(pd.DataFrame(rows), "error_budget")
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    assert body.count(r"\midrule") == 1
    assert "& 0 & t" not in body
    assert "Rows of zeros are left out." in text
    assert text.startswith("% packages: amsmath, booktabs, siunitx, graphicx\n")
