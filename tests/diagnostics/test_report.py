"""What an audit found: verdict, lookups, and JSON that its schema describes."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from action_tokenizers import ActionValueError, __version__
from action_tokenizers.card import check_audit
from action_tokenizers.diagnostics import report as module
from action_tokenizers.diagnostics.catalogue import CATALOGUE
from action_tokenizers.diagnostics.measure import Kind
from action_tokenizers.diagnostics.report import FRONT_PAGE, SCHEMA_VERSION, AuditReport, Condition, Status

SCHEMA = json.loads((Path(module.__file__).parent / "audit.schema.json").read_text(encoding="utf-8"))
REPORTS = ("full_report", "fast_report", "bare_report")


@pytest.fixture(params=REPORTS)
def report(request):
    return request.getfixturevalue(request.param)


def made(flag=False, **status):
    """A report of nothing but conditions."""
    conditions = tuple(Condition(name, "It is so.", found, "seen", "Eq 1") for name, found in status.items())
    return AuditReport({"type": "binning"}, {}, (), conditions, flag, "")


def resolved(schema):
    if "$ref" in schema:
        return {**SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], **schema}
    return schema


def undescribed(value, schema, path="report"):
    """The keys of `value` that the schema does not describe in words."""
    schema = resolved(schema)
    if isinstance(value, list):
        items = schema.get("items") or {}
        return [key for i, item in enumerate(value) for key in undescribed(item, items, f"{path}[{i}]")]
    if not isinstance(value, dict):
        return []
    properties = dict(schema.get("properties", {}))
    if "name" in properties and "parts" in properties:  # the parts of a measure depend on its name
        properties["parts"] = SCHEMA["$defs"][f"parts_of_{value['name']}"]
    missing = []
    for key, item in value.items():
        found = properties.get(key, schema.get("additionalProperties"))
        if found is None or (key in properties and not resolved(found).get("description")):
            missing.append(f"{path}.{key}")
        else:
            missing += undescribed(item, found, f"{path}.{key}")
    return missing


class TestJson:
    def test_the_schema_is_one(self):
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        assert SCHEMA["$schema"].endswith("2020-12/schema")
        assert SCHEMA["properties"]["schema_version"]["const"] == SCHEMA_VERSION

    def test_is_as_the_schema_says(self, report):
        told = json.loads(report.to_json_text())
        assert [f"{e.json_path}: {e.message}" for e in jsonschema.Draft202012Validator(SCHEMA).iter_errors(told)] == []

    def test_every_key_is_described_in_words(self, report):
        assert undescribed(report.to_json(), SCHEMA) == []

    def test_the_schema_would_notice(self, bare_report):
        """A validator that accepts anything, and a search for keys that finds none, are no tests."""
        told = json.loads(bare_report.to_json_text())
        told["measures"][0]["parts"]["per_dim"] = "wide"
        told["measures"][0]["parts"]["unheard_of"] = 1
        told["conditions"][0]["status"] = "perhaps"
        del told["verdict"]
        errors = {e.json_path for e in jsonschema.Draft202012Validator(SCHEMA).iter_errors(told)}
        assert errors == {"$", "$.conditions[0].status", "$.measures[0].parts.per_dim"}
        assert undescribed(told, SCHEMA) == ["report.measures[0].parts.unheard_of"]

    def test_the_schema_names_every_measure(self):
        assert SCHEMA["$defs"]["measure"]["properties"]["name"]["enum"] == sorted(CATALOGUE)
        assert SCHEMA["$defs"]["measure"]["properties"]["kind"]["enum"] == [kind.value for kind in Kind]

    def test_the_schema_names_every_condition(self, bare_report):
        condition = SCHEMA["properties"]["conditions"]["items"]["properties"]
        assert condition["name"]["enum"] == [c.name for c in bare_report.conditions]
        assert condition["status"]["enum"] == [status.value for status in Status]

    def test_comes_back_from_text(self, report):
        def refuse(constant):
            pytest.fail(f"{constant} is no JSON")

        assert json.loads(report.to_json_text(), parse_constant=refuse) == report.to_json()
        assert report.to_json_text().endswith("}\n")

    def test_tells_where_it_comes_from(self, full_report):
        told = full_report.to_json()
        assert told["library"] == f"action-tokenizers {__version__}"
        assert told["data"]["source"] == "<b>some & data</b>|"
        assert told["tokenizer"]["fitted_on"] == ["smooth_episodes"]
        assert [m["name"] for m in told["measures"]] == [m.name for m in full_report.measures]
        for measure in told["measures"]:
            assert measure["heading"] == CATALOGUE[measure["name"]].heading
            assert measure["meaning"] == CATALOGUE[measure["name"]].meaning

    def test_what_is_not_finite_is_null(self, bare_report):
        first = bare_report.measures[0]
        endless = dataclasses.replace(
            first, value=float("inf"), interval=(0.0, float("inf")), parts={"per_dim": [float("nan"), 1.0]}
        )
        told = dataclasses.replace(bare_report, measures=(endless,)).to_json()["measures"][0]
        assert (told["value"], told["unbounded"], told["interval"]) == (None, True, [0.0, None])
        assert told["parts"]["per_dim"] == [None, 1.0]

    def test_goes_onto_the_card(self, report):
        told = report.to_json()
        check_audit(told)
        assert told["measures"]


class TestVerdict:
    def test_nothing_against_it(self):
        assert made(mean_error=Status.HOLDS).verdict == (
            "Nothing measured here speaks against cloning with this tokenizer."
        )

    def test_what_is_not_shown_is_said(self):
        verdict = made(mean_error=Status.HOLDS, small_gain=Status.NOT_SHOWN, smooth_policy=Status.NOT_SHOWN).verdict
        assert verdict.endswith("with this tokenizer. Not shown: small gain, smooth policy.")

    def test_what_fails_comes_first(self):
        verdict = made(rare_errors=Status.FAILS, mean_error=Status.FAILS, small_gain=Status.NOT_SHOWN).verdict
        assert verdict == "Conditions that fail: rare errors, mean error. Not shown: small gain."

    def test_the_flag_is_no_forecast(self):
        verdict = made(True, smooth_tokenizer=Status.FAILS, no_silent_failure=Status.FAILS).verdict
        assert verdict.startswith("Silent failure risk: ")
        assert verdict.endswith("A possible worst case, not a forecast: confirm it by replay.")

    def test_the_flag_names_what_fails_besides(self):
        verdict = made(
            True,
            smooth_tokenizer=Status.FAILS,
            no_silent_failure=Status.FAILS,
            mean_error=Status.FAILS,
            smooth_pairs=Status.NOT_SHOWN,
        ).verdict
        assert verdict.endswith(
            "confirm it by replay. Conditions that fail besides: mean error. Not shown: smooth pairs."
        )

    def test_a_flag_that_is_not_shown_does_not_fire(self):
        verdict = made(None, smooth_tokenizer=Status.FAILS, no_silent_failure=Status.NOT_SHOWN).verdict
        assert verdict == "Conditions that fail: smooth tokenizer. Not shown: no silent failure."


def test_failing_are_those_that_fail():
    report = made(held_out=Status.HOLDS, mean_error=Status.FAILS, small_gain=Status.NOT_SHOWN, rare_errors=Status.FAILS)
    assert [c.name for c in report.failing] == ["mean_error", "rare_errors"]


def test_measures_are_found_by_name(full_report):
    assert full_report.measure("drift") is next(m for m in full_report.measures if m.name == "drift")
    assert full_report.measure("unheard_of") is None


def test_conditions_are_found_by_name(full_report):
    assert full_report.condition("held_out").status is Status.HOLDS
    with pytest.raises(ActionValueError, match=r"among \['held_out', .*got 'unheard_of'"):
        full_report.condition("unheard_of")


def test_every_measure_of_the_front_page_is_in_the_catalogue():
    names = [name for _, _, names in FRONT_PAGE for name in names]
    assert len(names) == len(set(names))
    assert set(names) <= set(CATALOGUE)


def test_caption_tells_data_and_unit(full_report, bare_report):
    data = full_report.data
    assert full_report.caption == (
        f"<b>some & data</b>|: 12 episodes, {data['chunks']} chunks of 4 steps x 3 dims; actions and errors "
        "in units of half the range of each dim."
    )
    unnamed = dataclasses.replace(bare_report, data={**bare_report.data, "source": ""})
    assert unnamed.caption.startswith("arrays: 3 episodes")


def test_reports_of_equal_audits_are_equal(bare_report):
    again = dataclasses.replace(bare_report)
    assert again == bare_report
    assert again != dataclasses.replace(bare_report, measures=())


def test_markdown_and_html_are_those_of_their_modules(bare_report, monkeypatch):
    monkeypatch.setattr("action_tokenizers.diagnostics.plots.plots", lambda report: [])  # they take the time
    assert bare_report.to_markdown().startswith("# Audit: binning\n")
    assert bare_report.to_html().startswith("<!doctype html>")
