"""The plots of an audit: each where its numbers are, none where they are not, in the colours of the page."""

import dataclasses
import math
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from action_tokenizers.diagnostics import plots as module
from action_tokenizers.diagnostics.catalogue import CATALOGUE
from action_tokenizers.diagnostics.frontier import Frontier, Point
from action_tokenizers.diagnostics.plots import COLOURS, Plot, comparison_plots, draw, frontier_plots, plots
from action_tokenizers.diagnostics.report import AuditReport
from action_tokenizers.errors import MissingExtraError
from tests.fakes.comparisons import comparison

SVG = "{http://www.w3.org/2000/svg}"
# title -> the measure and the part that it draws
DRAWN = {
    "Decoded over recorded actions": None,
    "Error by dim": ("error_mean", "per_dim"),
    "Error by position in the chunk": ("error_mean", "per_position"),
    "Largest error of each episode": ("error_max", "maxima"),
    "Excess jump against perturbation size": ("episode_jump", "curve"),
    "Local modulus": ("modulus", "eta"),
    "Codebook use": ("usage", "ranked"),
    "Far actions at near states": ("pair_violation", "curve"),
    "Deviation in replay": ("replay_deviation", "curve"),
    "Bounds against horizon": ("bound_stochastic", "curve"),
}


@pytest.fixture(scope="module")
def drawn(full_report):
    return {plot.title: plot for plot in plots(full_report)}


def only(*measures, action_dim=2, action_names=None, examples=()):
    """A report of a few measures: name and parts."""
    taken = tuple(CATALOGUE[name].measure(0.1, parts=parts) for name, parts in measures)
    data = {"action_dim": action_dim, "action_names": action_names}
    return AuditReport({"type": "binning"}, data, taken, (), None, "", examples=examples)


def texts(plot):
    return [element.text for element in ElementTree.fromstring(plot.svg).iter(f"{SVG}text")]


def example(dim="x", n=12):
    return {"episode": 3, "dim": dim, "recorded": [i / n for i in range(n)], "decoded": [0.1] * n}


class TestFullReport:
    def test_everything_is_drawn_in_reading_order(self, drawn):
        assert list(drawn) == list(DRAWN)

    def test_drawings_are_of_equal_bytes_from_run_to_run(self, drawn, full_page):
        """The page drew them anew."""
        for plot in drawn.values():
            assert plot.svg in full_page

    def test_drawings_are_whole_elements(self, drawn):
        for plot in drawn.values():
            root = ElementTree.fromstring(plot.svg)
            assert root.tag == f"{SVG}svg"
            assert root.get("role") == "img"
            assert root.get("aria-label").startswith(plot.title)
            assert root.get("viewBox")
            # the page decides how wide they are
            assert root.get("width") is None
            assert root.get("height") is None

    def test_colours_are_those_of_the_page(self, drawn):
        for plot in drawn.values():
            assert not re.findall(r"#[0-9a-fA-F]{6}\b", plot.svg), plot.title
            assert set(re.findall(r"var\([^)]*\)", plot.svg)) <= set(COLOURS.values())
            assert "var(--ink)" in plot.svg

    def test_nothing_is_loaded_and_nothing_tells_the_time(self, drawn):
        for plot in drawn.values():
            assert "<metadata" not in plot.svg
            assert not re.findall(r'(?:href|src)="[^#]', plot.svg)

    def test_ids_are_unique_within_a_page(self, drawn):
        ids = [found for plot in drawn.values() for found in re.findall(r'\bid="([^"]*)"', plot.svg)]
        assert ids
        assert len(ids) == len(set(ids))

    def test_what_is_referred_to_is_there(self, drawn):
        for plot in drawn.values():
            ids = set(re.findall(r'\bid="([^"]*)"', plot.svg))
            assert set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', plot.svg)) <= {
                pair for found in ids for pair in ((found, ""), ("", found))
            }

    def test_axes_and_lines_are_labelled(self, drawn):
        expected = {
            "Decoded over recorded actions": {"recorded", "decoded", "step of the episode"},
            "Error by dim": {"mean |error|", "drift (16 steps)", "dim", "half ranges"},
            "Error by position in the chunk": {"step of the chunk", "mean error norm, half ranges"},
            "Largest error of each episode": {"mean error", "episodes, sorted", "largest error, half ranges"},
            "Excess jump against perturbation size": {"median episode", "worst episode", "counts as far (at 5 %)"},
            "Local modulus": {"median", "99 %", "largest seen", "as far as the action"},
            "Codebook use": {"ids, most used first", "times used"},
            "Far actions at near states": {"decoded", "recorded", "distance of the states"},
            "Deviation in replay": {"state", "step", "mean deviation"},
            "Bounds against horizon": {"steps", "lost reward", "all there is to lose"},
        }
        for title, labels in expected.items():
            assert labels <= set(texts(drawn[title])), title

    def test_captions_are_sentences(self, drawn):
        for plot in drawn.values():
            assert plot.caption.endswith(".")
        assert drawn["Decoded over recorded actions"].caption.startswith("Episode ")


class TestMissing:
    def test_nothing_taken_is_nothing_drawn(self):
        assert plots(only()) == []

    def test_parts_that_are_not_there_are_not_drawn(self, full_report, monkeypatch):
        """Without drawing: which plots would be."""
        monkeypatch.setattr(module, "draw", lambda title, caption, paint, rows=1: Plot(title, "", caption))
        for title, place in DRAWN.items():
            if place is None:
                lacking = dataclasses.replace(full_report, examples=())
            else:
                name, part = place
                gone = {name}
                if name == "bound_stochastic":  # one drawing of all bounds
                    gone = {m.name for m in full_report.measures if m.name.startswith("bound_")}
                measures = tuple(
                    dataclasses.replace(m, parts={k: v for k, v in m.parts.items() if k != part})
                    if m.name in gone
                    else m
                    for m in full_report.measures
                )
                lacking = dataclasses.replace(full_report, measures=measures)
            assert [plot.title for plot in plots(lacking)] == [each for each in DRAWN if each != title]

    def test_chunks_of_one_step_have_no_positions(self):
        assert plots(only(("error_mean", {"per_position": [0.1]}))) == []

    def test_bounds_that_say_nothing_are_not_drawn(self):
        assert (
            plots(only(("bound_stochastic", {"regime": "none"}), ("bound_floor", {"horizon": [1.0], "curve": [0.0]})))
            == []
        )

    def test_without_matplotlib_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'action-tokenizers\[plots\]'"):
            plots(only(("error_max", {"maxima": [0.1, 0.2]})))
        assert plots(only()) == []


class TestShapes:
    def test_one_dim_is_one_row(self):
        (plot,) = plots(only(examples=(example("x"),)))
        assert "x" in texts(plot)
        assert {"recorded", "decoded"} <= set(texts(plot))

    def test_three_dims_are_taller_than_one(self):
        def height(*dims):
            (plot,) = plots(only(examples=tuple(map(example, dims))))
            return float(ElementTree.fromstring(plot.svg).get("viewBox").split()[3])

        assert height("x", "y", "z") > height("x")

    @pytest.mark.parametrize(("dims", "named"), [(1, True), (12, True), (13, False), (60, False)])
    def test_many_dims_are_numbered(self, dims, named):
        names = [f"joint {j}" for j in range(dims)]
        measures = ("error_mean", {"per_dim": [0.1] * dims}), ("drift", {"per_dim": [0.05] * dims})
        (plot,) = plots(only(*measures, action_dim=dims, action_names=names))
        assert (f"joint {dims - 1}" in texts(plot)) is named

    def test_dims_without_names_are_numbered(self):
        measures = ("error_mean", {"per_dim": [0.1, 0.2]}), ("drift", {"per_dim": [0.1, 0.1]})
        (plot,) = plots(only(*measures))
        assert {"0", "1"} <= set(texts(plot))

    @pytest.mark.parametrize(
        ("measure", "parts"),
        [
            ("usage", {"ranked": {"rank": [1], "count": [7]}, "dead": 9}),
            ("error_max", {"maxima": [0.0]}),
            ("error_mean", {"per_position": [0.0, 0.0]}),
            ("modulus", {"eta": [0.01, 0.1], "median": [0, 0], "q99": [0, 0], "largest": [0, 0]}),
            ("episode_jump", {"curve": {"eta": [0.1], "median": [0.0], "largest": [0.0]}, "threshold": 0.5}),
            ("pair_violation", {"curve": {"r": [0.0], "decoded": [0.0], "recorded": [0.0]}}),
            ("replay_deviation", {"curve": {"state": [0.0]}}),
            ("bound_floor", {"horizon": [1.0, 10.0], "curve": [0.0, 1e-9]}),
        ],
    )
    def test_numbers_without_spread_can_be_drawn(self, measure, parts):
        """No warning about equal limits or logarithms of 0: they are errors here."""
        (plot,) = plots(only((measure, parts)))
        assert plot.svg

    def test_jumps_of_relative_actions_are_in_their_own_units(self):
        parts = {"curve": {"eta": [0.1], "median": [0.0], "largest": [0.2]}, "threshold": 0.5}
        own = parts | {"of_relative": {"unit": [0.1], "mean_error": 0.1}}
        (plain,), (relative,) = (plots(only(("episode_jump", each))) for each in (parts, own))
        assert "excess jump, half ranges" in texts(plain)
        assert "excess jump, half spans (relative)" in texts(relative)

    def test_dead_ids_are_counted(self):
        (plot,) = plots(only(("usage", {"ranked": {"rank": [1, 2], "count": [7, 1]}, "dead": 1234})))
        assert plot.caption.startswith("1,234 ids never occur")


class TestNames:
    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("x", "x"),
            ("$x_{$", "$x_{$"),
            ("$a$b", "$a$b"),
            ("_hidden", " _hidden"),
            ("<script>", "<script>"),
            ("a" * 16, "a" * 16),
            ("a" * 17, "…" + "a" * 15),
            ("$" * 20, "…" + "$" * 15),
            ("夹爪", "夹爪"),
        ],
    )
    def test_mean_nothing_to_matplotlib(self, name, shown):
        (plot,) = plots(only(examples=(example(name),)))
        assert shown in texts(plot)

    def test_of_groups_stand_in_the_legend(self):
        (plot,) = plots(only(("replay_deviation", {"curve": {"_state": [0, 1], "$m$": [1, 0]}})))
        assert {" _state", "$m$"} <= set(texts(plot))


class TestDraw:
    def test_is_a_plot(self):
        plot = draw("Line", "A line.", lambda axes: axes.plot([0, 1], [0, 1]))
        assert (plot.title, plot.caption) == ("Line", "A line.")
        assert ElementTree.fromstring(plot.svg).get("aria-label") == "Line. A line."

    def test_several_rows_are_a_list(self):
        seen = []
        draw("Rows", "Some.", lambda axes: seen.append(len(axes)), rows=3)
        assert seen == [3]

    def test_equal_drawings_have_ids_of_their_title(self):
        def paint(axes):
            axes.plot([0, 1], [0, 1], "o")

        def ids(title):
            return set(re.findall(r'\bid="([^"]*)"', draw(title, "Dots.", paint).svg))

        assert ids("One") == ids("One")
        assert ids("One")
        assert not ids("One") & ids("Other")

    def test_a_label_breaks_no_attribute(self):
        plot = draw('a "b" <c> & d', "A caption.", lambda axes: None)
        assert ElementTree.fromstring(plot.svg).get("aria-label") == "a 'b' c and d. A caption."

    def test_leaves_the_users_settings_alone(self):
        import matplotlib as mpl

        before = dict(mpl.rcParams)
        draw("Line", "A line.", lambda axes: axes.plot([0, 1], [0, 1]))
        assert dict(mpl.rcParams) == before


def sweep(*points, recommended=None):
    """Points by name, bits, drift, jump and whether they are on the frontier."""
    made = tuple(
        Point(name, 1.0, bits, drift, drift, jump, False, (), best, only()) for name, bits, drift, jump, best in points
    )
    return Frontier(made, {}, recommended, "", {})


class TestFrontier:
    def test_is_two_plots(self):
        found = sweep(
            ("binning:bins=8", 8.0, 0.2, 0.3, True),
            ("binning:bins=16", 16.0, 0.1, 0.2, True),
            ("$k$:a=1", 16.0, 0.3, 0.0, False),
            recommended="binning:bins=16",
        )
        drift, jump = frontier_plots(found)
        assert {"binning", "$k$", "frontier", "bits per chunk", "drift, half ranges"} <= set(texts(drift))
        assert {"binning", "$k$", "excess jump, half ranges"} <= set(texts(jump))
        assert "frontier" not in texts(jump)
        for plot in (drift, jump):
            assert not re.findall(r"#[0-9a-fA-F]{6}\b", plot.svg)

    def test_one_tokenizer_without_a_jump(self):
        drift, jump = frontier_plots(sweep(("mine", 8.0, 0.2, None, True)))
        assert "mine" in texts(drift)
        assert jump.svg

    def test_no_error_at_all(self):
        """Nothing of it can stand on a logarithmic axis."""
        for plot in frontier_plots(sweep(("mine", 8.0, 0.0, 0.0, True), recommended="mine")):
            assert plot.svg

    def test_labels_of_a_narrow_axis_are_few_and_plain(self):
        """Labels of all of 1 to 9 run into each other."""
        drift, _ = frontier_plots(sweep(("a", 30.0, 0.2, 0.3, True), ("b", 600.0, 0.02, 0.1, True)))
        assert {"50", "100", "200", "500", "0.02", "0.05", "0.1"} <= set(texts(drift))

    def test_labels_of_a_wide_axis_are_decades(self):
        drift, _ = frontier_plots(sweep(("a", 1.0, 1e-6, 0.3, True), ("b", 10.0, 1.0, 0.1, True)))
        assert not {"0.02", "0.05", "0.002"} & set(texts(drift))


class TestComparison:
    def test_everything_is_drawn_in_reading_order(self):
        drawn = {plot.title: plot for plot in comparison_plots(comparison())}
        assert list(drawn) == [
            "Drift against rate",
            "Error by dim",
            "Drift by dim",
            "What a policy has to predict",
            "Speed",
        ]
        expected = {
            "Drift against rate": {"bits per chunk", "drift, half ranges"},
            "Error by dim": {"dim", "root mean square, half ranges", "$x", "<i>y</i>"},
            "Drift by dim": {"dim", "drift, half ranges"},
            "What a policy has to predict": {"could stand there", "left by pairs of ids", "bits per chunk"},
            "Speed": {"encode", "decode", "chunks per second"},
        }
        names = {"…ng:bins=8,strategy=quantile", "<script>mine</script>", " _$k$"}
        for title, labels in expected.items():
            assert labels | names <= set(texts(drawn[title])), title
            assert drawn[title].caption.endswith(".")
            assert not re.findall(r"#[0-9a-fA-F]{6}\b", drawn[title].svg)

    @pytest.fixture
    def painted(self, monkeypatch):
        """The axes as matplotlib was told to paint them, by title."""
        from matplotlib.figure import Figure

        seen = {}

        def paint_only(title, caption, paint, rows=1, *, height=1.0):
            seen[title] = Figure().subplots()
            paint(seen[title])
            return Plot(title, "", caption)

        monkeypatch.setattr(module, "draw", paint_only)
        return seen

    def test_numbers_are_those_of_the_rows(self, painted):
        """The lines and bars as matplotlib was told."""
        seen = painted
        comparison_plots(comparison(("a", "b")))
        lines = [line.get_xydata().tolist() for line in seen["Drift against rate"].lines]
        assert lines == [[[0.1, 0.1]], [[0.2, 0.2]]]
        first, second = (line.get_ydata() for line in seen["Error by dim"].lines)
        assert first[0] == pytest.approx(0.1)
        assert math.isnan(first[1])  # no error has no logarithm
        assert second == pytest.approx([0.02**0.5, 0.1])
        assert seen["Drift by dim"].lines[1].get_ydata() == pytest.approx([0.1, 0.1])  # signs apart
        could, left = seen["What a policy has to predict"].containers
        assert [bar.get_width() for bar in could] == [0.1, 0.2]
        assert math.isnan(left[0].get_width())
        assert left[1].get_width() == 3.0 * 8

    def test_audits_add_the_jumps(self, fast_report):
        *_, last = comparison_plots(comparison(("a", "b"), audits={"a": fast_report}))
        assert last.title == "Excess jump against perturbation size"
        assert "a" in texts(last)
        assert "b" not in texts(last)

    def test_many_names_are_told_apart_and_have_room(self):
        def height(plot):
            return float(ElementTree.fromstring(plot.svg).get("viewBox").split()[3])

        few, many = (comparison_plots(comparison([f"t{i}" for i in range(n)])) for n in (2, 20))
        for one, other in zip(few, many, strict=True):
            assert height(one) < height(other), one.title
            assert {f"t{i}" for i in range(20)} <= set(texts(other))

    def test_no_error_at_all_is_an_empty_plot_with_its_labels(self, painted):
        """On plain axes: nothing of it has a logarithm."""
        found = comparison(("a", "b"))
        for row in found.rows.values():
            row |= {"drift": 0.0, "mse_per_dim": [0.0, 0.0], "drift_per_dim": [0.0, 0.0]}
        comparison_plots(found)
        for title in ("Drift against rate", "Error by dim", "Drift by dim"):
            axes = painted[title]
            assert axes.get_yscale() == "linear", title
            assert [line.get_label() for line in axes.lines] == ["a", "b"]
            assert all(math.isnan(y) for line in axes.lines for y in line.get_ydata())
        assert painted["Speed"].get_xscale() == "log"

    def test_jumps_are_told_over_what_counts_as_far_for_each(self, painted, fast_report):
        """Of relative actions both are in other units, and a coarse tokenizer has another threshold."""
        made = {}
        for name, unit in (("absolute", 1.0), ("relative", 20.0)):
            jump = fast_report.measure("episode_jump")
            curve = {"eta": [0.01, 0.1], "median": [0.0, 0.0], "largest": [0.2 * unit, 0.6 * unit]}
            jump = dataclasses.replace(jump, parts={"curve": curve, "threshold": 0.5 * unit})
            made[name] = dataclasses.replace(fast_report, measures=(jump,))
        comparison_plots(comparison(("absolute", "relative"), audits=made))
        axes = painted["Excess jump against perturbation size"]
        for line in axes.lines[:2]:
            assert line.get_ydata() == pytest.approx([0.4, 1.2])
        assert list(axes.lines[2].get_ydata()) == [1, 1]
        assert "half ranges" not in axes.get_ylabel()

    def test_dims_without_names_are_numbered(self):
        plot = comparison_plots(comparison(("a",), action_names=None))[1]
        assert {"0", "1"} <= set(texts(plot))

    def test_without_matplotlib_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingExtraError, match=r"action-tokenizers\[plots\]"):
            comparison().to_html()
