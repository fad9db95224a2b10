"""Numbers as they are printed, and the rows of audits and sweeps."""

import dataclasses
import re

import pytest

from action_tokenizers.diagnostics.catalogue import CATALOGUE
from action_tokenizers.diagnostics.frontier import Frontier, Point
from action_tokenizers.diagnostics.report import FRONT_PAGE, Condition, Status
from action_tokenizers.diagnostics.tables import (
    LIMITS,
    SWEEP_COLUMNS,
    SWEEP_LEGEND,
    budget,
    evidence,
    front_page,
    markdown,
    number,
    row_of,
    sweep_markdown,
    sweep_rows,
)

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "half range", "not shown"),
        (NAN, "half range", "not shown"),
        (NAN, "share of steps", "not shown"),
        (INF, "half range", "unbounded"),
        (-INF, "half range", "-unbounded"),
        (INF, "share of steps", "unbounded"),
        (0.0, "half range", "0"),
        (0.0123456, "half range", "0.0123"),
        (1.0, "half range", "1"),
        (-0.5, "half range", "-0.5"),
        (1e-6, "half range", "1e-06"),
        (999.4, "bits", "999"),
        (999.6, "bits", "1,000"),
        (-999.6, "bits", "-1,000"),
        (1234567.8, "ids", "1,234,568"),
        (0.0, "share of episodes", "0 %"),
        (0.0123456, "share of episodes", "1.23 %"),
        (1.0, "share", "100 %"),
    ],
)
def test_numbers_are_as_a_person_reads_them(value, unit, shown):
    assert number(value, unit) == shown


class TestRow:
    def row(self, name, **changed):
        entry = CATALOGUE[name]
        return row_of(dataclasses.replace(entry.measure(0.25), **changed))

    def test_says_what_the_catalogue_says(self):
        row, entry = self.row("drift", caveat="Beware."), CATALOGUE["drift"]
        assert (row.name, row.heading, row.meaning, row.unit) == ("drift", entry.heading, entry.meaning, entry.unit)
        assert (row.value, row.interval, row.kind, row.caveat) == ("0.25", "", "UNBIASED", "Beware.")

    @pytest.mark.parametrize(
        ("interval", "shown"), [((0.1, 0.5), "0.1 to 0.5"), ((0.1, INF), "0.1 to unbounded"), (None, "")]
    )
    def test_intervals(self, interval, shown):
        assert self.row("drift", interval=interval).interval == shown

    @pytest.mark.parametrize(
        ("interval", "shown"),
        [((0.0, 0.265), "0 to 26.5 %"), ((0.0, 1.0), "0 to 100 %"), ((0.1, INF), "10 % to unbounded")],
    )
    def test_intervals_of_shares_say_percent_once(self, interval, shown):
        assert self.row("episode_jump", interval=interval).interval == shown

    def test_what_is_not_shown_has_no_interval(self):
        row = self.row("drift", value=None, interval=(0.0, 1.0))
        assert (row.value, row.interval) == ("not shown", "")


class TestFrontPage:
    def test_is_in_order_and_complete(self, full_report):
        groups = front_page(full_report)
        assert [(g.title, g.remark) for g in groups] == [(title, remark) for title, remark, _ in FRONT_PAGE]
        assert [[row.name for row in g.rows] for g in groups] == [list(names) for *_, names in FRONT_PAGE]

    def test_drift_is_first_and_the_alarm_is_no_forecast(self, full_report):
        titles = [group.title for group in front_page(full_report)]
        assert titles == ["Drift", "Values held still", "Learnability", "Smoothness alarm", "Size of error"]
        assert front_page(full_report)[3].remark == "a possible worst case, not a forecast"

    def test_what_was_not_taken_is_left_out(self, bare_report):
        groups = {group.title: [row.name for row in group.rows] for group in front_page(bare_report)}
        assert "Learnability" not in groups
        assert groups["Smoothness alarm"] == ["episode_jump", "episode_jump_fine", "excess_jump"]

    def test_nothing_taken_is_an_empty_page(self, bare_report):
        assert front_page(dataclasses.replace(bare_report, measures=())) == ()


@pytest.mark.parametrize(
    ("found", "needs", "said"),
    [
        ("none of 3 occurs", "", "none of 3 occurs."),
        ("Too few episodes.", "", "Too few episodes."),
        ("not measured", "states", "not measured. Needs: states."),
        ("One episode.", "more episodes", "One episode. Needs: more episodes."),
    ],
)
def test_evidence_is_sentences(found, needs, said):
    assert evidence(Condition("a", "b.", Status.NOT_SHOWN, found, "c", needs=needs)) == said


def tables_of(text):
    """The Markdown tables of a text, as lists of rows of cells."""
    found = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(re.split(r"(?<!\\)\|", line)[1:-1])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


class TestMarkdown:
    @pytest.fixture(params=["full_report", "fast_report", "bare_report"])
    def report(self, request):
        return request.getfixturevalue(request.param)

    def test_tables_have_equally_many_columns(self, report):
        tables = tables_of(markdown(report))
        assert [len(table[0]) for table in tables] == [5, 3, 5]
        for table in tables:
            assert {len(row) for row in table} == {len(table[0])}
            assert all(set(cell) <= set("-:") for cell in table[1])

    def test_tells_everything(self, report):
        text = markdown(report)
        first, conditions, numbers = tables_of(text)
        assert len(first) == 2 + sum(1 + len(group.rows) for group in front_page(report))
        assert len(conditions) == 2 + len(report.conditions)
        assert len(numbers) == 2 + len(report.measures)
        for said in (report.verdict, report.caption, report.regime, *report.notes, *report.advice, *LIMITS):
            assert said in text
        for measure in report.measures:
            assert f"- **{CATALOGUE[measure.name].heading}**: {CATALOGUE[measure.name].meaning}" in text
            assert CATALOGUE[measure.name].advice in text

    def test_the_verdict_comes_before_the_numbers(self, report):
        text = markdown(report)
        order = [text.index(each) for each in (report.verdict, "## At a glance", "## Conditions", "## All numbers")]
        assert order == sorted(order)

    def test_advice_is_numbered_where_there_is_some(self, bare_report):
        assert "## What to do" not in markdown(dataclasses.replace(bare_report, advice=()))
        assert "## What to do\n\n1. Sit.\n2. Wait.\n" in markdown(
            dataclasses.replace(bare_report, advice=("Sit.", "Wait."))
        )

    def test_pipes_and_lines_break_no_table(self, bare_report):
        hostile = Condition("a_b", "It | is\nso.", Status.NOT_SHOWN, "x | y\nz", "Eq | 1", needs="a | b")
        tables = tables_of(markdown(dataclasses.replace(bare_report, conditions=(hostile,))))
        assert tables[1][2] == [r" **a b**: It \| is so. (Eq \| 1) ", " not shown ", r" x \| y z. Needs: a \| b. "]

    def test_ends_like_a_file(self, report):
        assert markdown(report).endswith(".\n")
        assert "\n\n\n" not in markdown(report)


@pytest.fixture
def sweep(bare_report):
    def point(name, bits, jump, alarm, best, **more):
        return Point(name, 3.0, bits, 0.0312, 0.05, jump, alarm, more.get("fails", ()), best, bare_report)

    points = (
        point("binning:bins=8", 8.0, 0.5, None, False),
        point("binning:bins=16", 16.0, None, False, True),
        point("mine|odd", 1234.4, 0.25, True, True, fails=("smooth_tokenizer", "mean_error")),
    )
    budget = {"tokens": 4.0, "bits": 2000.0}
    return Frontier(points, budget, "binning:bins=16", "Because.", {}, ("a note",))


class TestSweep:
    def test_rows_are_the_cells_of_the_columns(self, sweep):
        assert sweep_rows(sweep) == [
            ["", "binning:bins=8", "3.0", "8", "0.0312", "0.0500", "0.500", "not shown", ""],
            ["recommended", "binning:bins=16", "3.0", "16", "0.0312", "0.0500", "not shown", "off", ""],
            ["frontier", "mine|odd", "3.0", "1234", "0.0312", "0.0500", "0.250", "on", "smooth tokenizer, mean error"],
        ]
        assert {len(row) for row in sweep_rows(sweep)} == {len(SWEEP_COLUMNS)}

    def test_markdown(self, sweep):
        text = sweep_markdown(sweep)
        (table,) = tables_of(text)
        assert {len(row) for row in table} == {len(SWEEP_COLUMNS)}
        assert len(table) == 2 + len(sweep.points)
        for said in ("**Recommended: binning:bins=16**", "Because.", "Note: a note", SWEEP_LEGEND, r"mine\|odd"):
            assert said in text
        assert "\n\n\n" not in text

    def test_nothing_recommended_is_none(self, sweep):
        assert "**Recommended: none**" in sweep_markdown(dataclasses.replace(sweep, recommended=None))

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({}, "none stated"),
            ({"bits": 96.0}, "at most 96 bits"),
            ({"tokens": 8.5, "bits": 96.0}, "at most 8.5 tokens and at most 96 bits"),
        ],
    )
    def test_budget_in_words(self, sweep, asked, said):
        assert budget(dataclasses.replace(sweep, budget=asked)) == said
