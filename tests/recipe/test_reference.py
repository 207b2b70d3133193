"""The generated documents are current and say what the schema says."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from distpro_cli.commands.schema import schema
from distpro_cli.recipe import reference
from distpro_cli.recipe.describe import sections
from distpro_cli.recipe.problems import places_of

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.mark.parametrize(
    ("name", "option", "text"),
    [
        ("recipe.schema.json", "", reference.json_schema()),
        ("recipe.md", " --markdown", reference.markdown()),
    ],
)
def test_the_documents_are_current(name: str, option: str, text: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == text, f"regenerate it: distpro schema{option} > docs/{name}"


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    schema()
    assert capsys.readouterr().out == reference.json_schema()
    schema(markdown=True)
    assert capsys.readouterr().out == reference.markdown()


def test_the_json_schema_is_one_and_refuses_unknown_keys() -> None:
    value = json.loads(reference.json_schema())
    jsonschema.Draft202012Validator.check_schema(value)
    validator = jsonschema.Draft202012Validator(value)
    short = {"data": {"name": "digits"}, "teacher": {"name": "a"}, "student": {"name": "b"}}
    assert validator.is_valid(short)
    assert not validator.is_valid({**short, "sarch": {}})
    assert not validator.is_valid({**short, "search": {"epochs": 0}})


def test_every_key_is_described_and_in_the_reference() -> None:
    text = reference.markdown()
    for place, section in sections("N"):
        assert f"`{place}`" in text or place == ""
        for name, key in section["properties"].items():
            assert key["description"], f"{place}.{name}"
            assert f"| `{name}` |" in text


def test_the_words_of_types_and_defaults() -> None:
    text = reference.markdown()
    assert "| `held_out` | number > 0 and &lt; 1 | `0.1` |" in text
    assert "| `name` | text that is not empty, such as wrn_16_2" in text
    assert "| `alpha_betas` | list of 2 numbers ≥ 0 and &lt; 1 | `[0.5, 0.999]` |" in text
    assert "| `root` | text, or nothing | nothing |" in text


def test_places_of_a_key() -> None:
    assert places_of("transform") == ["pathways.0.transform"]
    assert places_of("outer_share") == ["search.outer_share"]
