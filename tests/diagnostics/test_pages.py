"""The page of an audit: it parses, loads nothing, escapes what it is told, and is readable in light and dark."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from action_tokenizers.diagnostics import pages
from action_tokenizers.diagnostics.catalogue import CATALOGUE
from action_tokenizers.diagnostics.compare import COLUMNS
from action_tokenizers.diagnostics.frontier import Frontier, Point
from action_tokenizers.diagnostics.measure import Kind
from action_tokenizers.diagnostics.pages import KINDS, comparison_html, html, sweep_html
from action_tokenizers.diagnostics.plots import Plot
from action_tokenizers.diagnostics.report import Status
from action_tokenizers.diagnostics.tables import LIMITS, SWEEP_COLUMNS, SWEEP_LEGEND, front_page
from action_tokenizers.errors import MissingExtraError
from tests.fakes.comparisons import NAMES, comparison

CSS = (Path(pages.__file__).parent / "pages.css").read_text(encoding="utf-8")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (360, 600)  # of phones, in CSS pixels
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """A page as elements and text; `wrong` holds what is not closed as it was opened."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.wrong, self.elements, self.texts = [], [], [], []
        self.feed(page.replace("<wbr>", ""))
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.wrong.append(f"/{tag}")

    def handle_data(self, text):
        if not self.open or self.open[-1] != "style":
            self.texts.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def of(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]


@pytest.fixture(scope="module")
def parsed(full_page):
    return Page(full_page)


@pytest.fixture
def unplotted(monkeypatch):
    """Plots take the time, and are looked at elsewhere."""
    monkeypatch.setattr("action_tokenizers.diagnostics.plots.plots", lambda report: [])


class TestPage:
    def test_parses(self, parsed):
        assert parsed.wrong == []
        assert [len(parsed.of(tag)) for tag in ("html", "head", "body", "header", "main", "h1", "title")] == [1] * 7
        assert parsed.elements[0] == ("html", {"lang": "en"})
        assert parsed.of("meta", charset="utf-8")

    def test_loads_nothing(self, parsed, full_page):
        assert not {tag for tag, _ in parsed.elements} & {"script", "link", "img", "iframe", "object", "embed", "image"}
        for _, attributes in parsed.elements:
            for name, value in attributes.items():
                assert not name.startswith("on")
                if name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
                    assert value.startswith("#")
        assert set(re.findall(r"url\((.)", full_page)) == {"#"}
        assert "@import" not in full_page
        # what remains of addresses are the names of the languages, which nobody opens
        names = {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
        assert set(re.findall(r"https?://[^\s\"')<]*", full_page)) == names

    def test_ids_are_unique_and_references_meet(self, parsed, full_page):
        ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
        assert ids
        assert len(ids) == len(set(ids))
        referred = set(re.findall(r"url\(#([^)]*)\)", full_page))
        referred |= {a["xlink:href"][1:] for _, a in parsed.elements if "xlink:href" in a}
        assert referred == set(ids)

    def test_says_everything(self, parsed, full_report):
        for said in (full_report.verdict, full_report.caption, full_report.regime, *full_report.advice, *LIMITS):
            assert " ".join(said.split()) in parsed.text
        for measure in full_report.measures:
            entry = CATALOGUE[measure.name]
            for said in (entry.heading, entry.meaning, measure.caveat, entry.advice, entry.source):
                assert " ".join(said.split()) in parsed.text, measure.name
        for condition in full_report.conditions:
            assert condition.name.replace("_", " ") in parsed.text
            assert condition.statement in parsed.text
        for group in front_page(full_report):
            assert group.title in parsed.text
            assert group.remark in parsed.text

    def test_the_first_screen_is_verdict_then_numbers(self, full_page):
        order = ["<h1>", "At a glance", ">Drift ", ">Values held still ", ">Smoothness alarm ", ">Size of error "]
        order += ["<h2>Conditions", "<h2>Plots", "<h2>All numbers", "<h2>Limits"]
        places = [full_page.index(each) for each in order]
        assert places == sorted(places)

    def test_every_number_can_be_opened(self, parsed, full_report):
        assert len(parsed.of("details")) == len(parsed.of("summary")) == len(full_report.measures)

    def test_plots_have_a_name_for_those_who_cannot_see_them(self, parsed):
        drawings = parsed.of("svg")
        assert len(drawings) == len(parsed.of("figure")) == len(parsed.of("figcaption"))
        assert drawings
        assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)

    def test_every_kind_is_explained(self, parsed):
        assert set(KINDS) == set(Kind)
        for text in KINDS.values():
            assert text in parsed.text

    def test_every_status_is_a_word_and_not_only_a_colour(self, parsed, full_report):
        said = parsed.of("span")
        moods = [a["class"] for a in said if a.get("class", "").startswith("status ")]
        assert moods == [f"status {c.status.value.replace(' ', '-')}" for c in full_report.conditions]


class TestEscaping:
    def test_names_of_source_and_actions_are_text(self, parsed, full_page, full_report):
        assert "<script" not in full_page.lower()
        assert "<b>some" not in full_page
        assert "<b>some & data</b>|: 12 episodes" in parsed.text
        for name in full_report.data["action_names"]:
            assert name in parsed.text

    def test_everything_a_report_tells_is_text(self, bare_report, unplotted):
        hostile = "<script>x</script> \"'&<b>"
        condition = dataclasses.replace(
            bare_report.conditions[0], statement=hostile, evidence=hostile, source=hostile, needs=hostile
        )
        measure = dataclasses.replace(
            bare_report.measures[0], caveat=hostile, unit=hostile, method=hostile, n={hostile: 1}
        )
        report = dataclasses.replace(
            bare_report,
            tokenizer={"type": hostile, hostile: hostile},
            data={**bare_report.data, "source": hostile, hostile: [hostile]},
            measures=(measure,),
            conditions=(condition,),
            regime=hostile,
            advice=(hostile,),
            notes=(hostile,),
        )
        page = html(report)
        parsed = Page(page)
        assert parsed.wrong == []
        assert not parsed.of("script")
        assert "<script" not in page
        # type (twice), other facts and their names, source (twice), condition, measure, regime, advice, note
        assert parsed.text.count("<script>x</script>") >= 18


class TestMood:
    def mood(self, report, **status):
        changed = tuple(dataclasses.replace(report.conditions[0], name=n, status=s) for n, s in status.items())
        page = html(dataclasses.replace(report, conditions=changed, silent_failure=status.pop("flag", False)))
        return Page(page).of("header")[0]["class"]

    @pytest.mark.parametrize(
        ("status", "mood"),
        [
            ({"held_out": Status.HOLDS}, "holds"),
            ({"held_out": Status.HOLDS, "small_gain": Status.NOT_SHOWN}, "open"),
            ({"held_out": Status.FAILS, "small_gain": Status.NOT_SHOWN}, "fails"),
        ],
    )
    def test_is_the_worst_of_the_conditions(self, bare_report, unplotted, status, mood):
        assert self.mood(bare_report, **status) == mood

    def test_the_flag_is_the_worst(self, bare_report, unplotted):
        page = html(dataclasses.replace(bare_report, conditions=(), silent_failure=True))
        assert Page(page).of("header")[0]["class"] == "fails"


def test_nothing_to_do_has_no_heading(bare_report, unplotted):
    assert "What to do" not in html(dataclasses.replace(bare_report, advice=()))
    assert "What to do" in html(dataclasses.replace(bare_report, advice=("Wait.",)))


def test_without_matplotlib_the_extra_is_named(bare_report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"action-tokenizers\[plots\]"):
        bare_report.to_html()
    assert bare_report.to_markdown()  # needs none


def variables(block):
    return dict(re.findall(r"(--[a-z]+):\s*([^;}]+)", block))


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


class TestStyle:
    light, dark = (variables(block) for block in re.findall(r":root \{([^}]*)\}", CSS))

    def test_is_in_the_page(self, full_page):
        assert f"<style>{CSS}</style>" in full_page

    def test_dark_has_every_colour_that_light_has(self):
        assert self.dark.keys() == self.light.keys()
        assert not set(self.dark.items()) & set(self.light.items())
        assert CSS.index("prefers-color-scheme: dark") > CSS.index(":root")

    def test_every_variable_that_is_used_is_defined(self, full_page):
        used = set(re.findall(r"var\((--[^)]*)\)", full_page))
        assert used <= self.light.keys()
        assert {"--ink", "--accent", "--second"} <= used

    def test_no_colour_but_those(self, full_page):
        """What is not a variable stays light in the dark."""
        assert re.findall(r"#[0-9a-fA-F]{6}\b", full_page.replace(CSS, "")) == []
        outside = re.sub(r":root \{[^}]*\}", "", CSS)
        assert re.findall(r"#[0-9a-fA-F]{3,8}\b", outside) == []

    @pytest.mark.parametrize("theme", ["light", "dark"])
    @pytest.mark.parametrize("ground", ["--paper", "--card"])
    def test_text_can_be_read(self, theme, ground):
        """At least 4.5 to 1 for text and 3 to 1 for lines, as WCAG 2 has it."""
        colours = getattr(self, theme)
        for text in ("--ink", "--soft", "--good", "--bad", "--open"):
            assert contrast(colours[text], colours[ground]) >= 4.5, text
        for line in ("--accent", "--second", "--third", "--fourth"):
            assert contrast(colours[line], colours[ground]) >= 3, line


@pytest.fixture
def unplotted_comparison(monkeypatch):
    monkeypatch.setattr("action_tokenizers.diagnostics.plots.comparison_plots", lambda found: [])


@pytest.fixture
def sweep(bare_report):
    points = tuple(
        Point(name, 3.0, 8.0 * (i + 1), 0.1 / (i + 1), 0.2, jump, alarm, (), True, bare_report)
        for i, (name, jump, alarm) in enumerate(
            [("binning:bins=8", 0.5, False), ("<script>mine</script>:$a", None, None), ("fast:scale=2", 0.1, True)]
        )
    )
    return Frontier(points, {"bits": 64.0}, "binning:bins=8", "Because <it> is.", {}, ("a <note>",))


class TestSweep:
    def test_parses_and_says_everything(self, sweep):
        page = sweep_html(sweep)
        parsed = Page(page)
        assert parsed.wrong == []
        assert "<script" not in page
        assert len(parsed.of("svg")) == 2
        assert len(parsed.of("tr")) == 1 + len(sweep.points)
        assert len(parsed.of("th", scope="col")) == len(SWEEP_COLUMNS)
        assert len(parsed.of("th", scope="row")) == len(sweep.points)
        # what a cell is under stands beside it on a narrow page
        labels = [a["data-label"] for a in parsed.of("td")]
        assert labels == [c for c in SWEEP_COLUMNS if c != "tokenizer"] * len(sweep.points)
        for said in ("Sweep of 3 tokenizers", "at most 64 bits", "Because <it> is.", "a <note>", SWEEP_LEGEND):
            assert said in parsed.text
        for point in sweep.points:
            assert point.name in parsed.text

    def test_nothing_recommended_is_said(self, sweep, monkeypatch):
        drawn = [Plot("A & B", "<svg></svg>", "a < b")]
        monkeypatch.setattr("action_tokenizers.diagnostics.plots.frontier_plots", lambda found: drawn)
        parsed = Page(sweep_html(dataclasses.replace(sweep, recommended=None)))
        assert "Recommended: none" in parsed.text
        assert parsed.of("header")[0]["class"] == "open"
        assert "A & B" in parsed.text
        assert "a < b" in parsed.text


class TestComparison:
    def test_parses_and_says_everything(self):
        found = comparison()
        page = comparison_html(found)
        parsed = Page(page)
        assert parsed.wrong == []
        assert "<script" not in page
        assert len(parsed.of("svg")) == 5
        for said in ("Comparison of 3 tokenizers", "a <note>", found.caption(), "$x", "<i>y</i>"):
            assert said in parsed.text
        assert f"Least drift: {NAMES[0]}, 0.1 half ranges for 4 ids a chunk" in parsed.text
        for column in COLUMNS:
            assert column.meaning in parsed.text
            assert all(cell in parsed.text for cell in found.cells(column))
        # two tables: all numbers and errors by dim
        assert len(parsed.of("th", scope="row")) == len(COLUMNS) + 2
        assert [a["data-label"] for a in parsed.of("td")] == list(NAMES) * (len(COLUMNS) + 2)
        assert parsed.of("header")[0]["class"] == "plain"

    def test_loads_nothing_and_has_no_colours_of_its_own(self):
        page = comparison_html(comparison())
        assert set(re.findall(r"url\((.)", page)) == {"#"}
        assert re.findall(r"#[0-9a-fA-F]{6}\b", page.replace(CSS, "")) == []
        ids = re.findall(r' id="([^"]*)"', page)
        assert len(ids) == len(set(ids))

    def test_audits_say_what_holds_of_each(self, bare_report, fast_report):
        fewer = dataclasses.replace(bare_report, conditions=bare_report.conditions[1:])
        found = comparison(audits=zip(NAMES, (fewer, fast_report, fast_report), strict=True))
        parsed = Page(comparison_html(found))
        assert parsed.wrong == []
        assert len(parsed.of("svg")) == 6
        for report in (fewer, fast_report):
            assert report.verdict in parsed.text
        moods = [a["class"] for a in parsed.of("span") if a.get("class", "").startswith("status ")]
        expected = [c.status for report in (fewer, fast_report, fast_report) for c in report.conditions]
        assert sorted(moods) == sorted(f"status {status.value.replace(' ', '-')}" for status in expected)
        for condition in fast_report.conditions:
            assert condition.statement in parsed.text

    def headline(self, found):
        page = comparison_html(found)
        return re.sub("<[^>]*>", "", re.search("<h1>(.*?)</h1>", page)[1]), Page(page).text

    def test_no_headline_for_one_that_saw_the_data_or_fails(self, bare_report, unplotted_comparison):
        held = dataclasses.replace(bare_report.conditions[0], status=Status.HOLDS)
        good = dataclasses.replace(bare_report, conditions=(held,), silent_failure=False)
        bad = dataclasses.replace(good, conditions=(dataclasses.replace(held, status=Status.FAILS),))
        found = comparison(("a", "b", "c"), audits={"a": good, "b": bad, "c": good})
        assert self.headline(found)[0] == "Least drift: a, 0.1 half ranges for 4 ids a chunk"
        seen = dataclasses.replace(found, notes=("a is NOT HELD OUT: it was fitted on some",))
        head, text = self.headline(seen)
        assert head == "Least drift: c, 0.3 half ranges for 12 ids a chunk"
        assert "a drifts by 0.1 and is not in the headline: it was fitted on some of these episodes" in text
        assert "b drifts by 0.2 and is not in the headline: it has an audit that fails" in text
        flagged = dataclasses.replace(good, silent_failure=True)
        none = dataclasses.replace(seen, audits={"a": good, "b": bad, "c": flagged})
        assert self.headline(none)[0] == "No tokenizer here can be named the best by drift"

    @pytest.mark.parametrize("unknown", [None, float("nan")])
    def test_numbers_that_are_not_shown(self, unknown):
        """With plots: none of them may trip over what is missing."""
        found = comparison(("a", "b"))
        lost = {"drift": unknown, "mse_per_dim": [unknown, 0.1], "drift_per_dim": [unknown, unknown]}
        found.rows["a"] |= lost | {"bits": unknown, "encode_per_s": unknown, "tokens": unknown, "entropy": 1.0}
        assert self.headline(found)[0] == "Least drift: b, 0.2 half ranges for 8 ids a chunk"
        found.rows["b"] |= {"tokens": unknown}
        assert self.headline(found)[0] == "Least drift: b, 0.2 half ranges"
        found.rows["b"] |= lost
        assert self.headline(found)[0] == "No tokenizer here can be named the best by drift"

    def test_one_tokenizer_is_singular(self):
        assert "Comparison of 1 tokenizer " in Page(comparison_html(comparison(NAMES[:1]))).text

    def test_names_break_where_a_person_would(self, sweep):
        assert ">binning:<wbr>bins=<wbr>8,<wbr>strategy=<wbr>quantile</th>" in comparison_html(comparison())
        assert "Recommended: binning:<wbr>bins=<wbr>8</h1>" in sweep_html(sweep)


# writes into the title how wide each page of a frame is, and its widest table beyond the room that it has
PROBE = """<!doctype html><title></title><body><script>
addEventListener("load", () => {
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument;
    const beyond = [...page.querySelectorAll(".wide")].map((each) => each.scrollWidth - each.clientWidth);
    return [page.documentElement.scrollWidth, Math.max(0, ...beyond), page.querySelectorAll("h1").length];
  }));
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium to lay the pages out")
def test_no_page_and_no_table_is_wider_than_a_narrow_screen(full_page, fast_report, sweep, tmp_path):
    """Rows become lists there: a table that scrolls sideways hides its numbers."""
    audits = dict.fromkeys(NAMES, fast_report)
    pages = [full_page, sweep_html(sweep), comparison_html(comparison(audits=audits))]
    frames = "".join(
        f'<iframe width="{width}" height="800" style="border:0" srcdoc="{escape(page)}"></iframe>'
        for page in pages
        for width in WIDTHS
    )
    (tmp_path / "probe.html").write_text(PROBE + frames, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", (tmp_path / "probe.html").as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    measured = json.loads(unescape(re.search("<title>(.*?)</title>", ran.stdout)[1]))
    assert len(measured) == len(pages) * len(WIDTHS)
    for (width, beyond, heads), asked in zip(measured, WIDTHS * len(pages), strict=True):
        assert heads == 1
        assert width <= asked
        assert beyond == 0
