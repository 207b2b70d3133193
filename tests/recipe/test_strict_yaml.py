"""The YAML that recipes use: YAML 1.2 core types, bounds, no objects, no duplicates."""

from __future__ import annotations

import math

import pytest

from distpro_cli.recipe.strict_yaml import MAX_BYTES, MAX_DEPTH, StrictYamlError, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("12", 12),
        ("007", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("yes", "yes"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2001-01-01", "2001-01-01"),
        ("'3e-4'", "3e-4"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("-.inf", -math.inf),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = read_yaml(f"key: {text}").value["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        "3e-4",
        "yes",
        "true",
        "null",
        "",
        "12",
        "0x1F",
        "<<",
        "a: b",
        "# c",
        " x ",
        "line\nline",
        "é→\x85",
        "-",
        "*a",
    ],
)
def test_text_is_written_so_that_it_stays_text(value: str) -> None:
    assert read_yaml(write_yaml({"key": value, "list": [value]})).value == {"key": value, "list": [value]}
    if value:
        assert read_yaml(write_yaml({value: 1})).value == {value: 1}


def test_values_are_written_so_that_they_come_back() -> None:
    value = {"a": [1, 1.0, 1e-20, 1e300, True, None, []], "b": {"c": {}, "d": [[1, 2], [3]]}, "e": -math.inf}
    assert read_yaml(write_yaml(value)).value == value


def test_duplicate_keys_are_found_at_any_depth() -> None:
    document = read_yaml("a:\n  - b: 1\n    c: 2\n    b: 3\n'x': 1\nx: 2\n")
    assert [(m.path, m.line) for m in document.mistakes] == [(("a", 0, "b"), 4), (("x",), 6)]
    assert "line 2 already" in document.mistakes[0].message


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['x']",
        "!!python/name:os.system",
        "!mine x",
        "!!set {a}",
        "!!binary aa",
    ],
)
def test_tags_that_construct_are_refused(tag: str) -> None:
    document = read_yaml(f"key: {tag}")
    assert "is not allowed" in document.mistakes[0].message
    assert document.value == {"key": None}
    assert document.unread == {("key",)}


@pytest.mark.parametrize("text", ["!!int x", "!!map [1]", "!!seq {a: 1}", "!!null x", "!!bool yes"])
def test_core_tags_must_fit(text: str) -> None:
    assert "does not fit" in read_yaml(f"key: {text}").mistakes[0].message


def test_lines_are_known_for_keys_and_items() -> None:
    lines = read_yaml("a:\n  b: 1\nc:\n  - 1\n  - d: 2\n").lines
    assert lines == {("a",): 1, ("a", "b"): 2, ("c",): 3, ("c", 0): 4, ("c", 1): 5, ("c", 1, "d"): 5}


def test_anchors_aliases_and_merge_keys() -> None:
    document = read_yaml("a: &a {x: 1, y: {z: 2}}\nb: {<<: *a, x: 3}\nc: *a\nd: {<<: [*a, {w: 4, x: 5}]}\n")
    assert document.mistakes == []
    assert document.value["b"] == {"x": 3, "y": {"z": 2}}
    assert document.value["c"] == {"x": 1, "y": {"z": 2}}
    assert document.value["d"] == {"x": 1, "y": {"z": 2}, "w": 4}
    assert document.value["c"] is not document.value["a"]


def test_a_merge_of_no_section_is_a_mistake() -> None:
    assert "merges sections" in read_yaml("a: {<<: 3}").mistakes[0].message


@pytest.mark.parametrize("text", ["1: x", "? [a]\n: x", "null: x", "true: x", "1.5: x"])
def test_keys_are_text(text: str) -> None:
    assert "keys are text" in read_yaml(text).mistakes[0].message


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1", "not YAML"),
        ("a: 1\nb: c: d", "put text with ': ' in quotes"),
        ("a:\n\tb: 1", "indent with spaces, not tabs"),
        ("--- 1\n--- 2", "more than one YAML document"),
        ("a: *nowhere", "undefined alias"),
        ("a: \x00", "not YAML"),
        ("a: &a [*a]", "alias contains itself"),
        ("a: &a {<<: *a}", "alias contains itself"),
        ("[" * 10_000, f"nested more than {MAX_DEPTH} deep"),
        ("- " * 10_000 + "1", f"nested more than {MAX_DEPTH} deep"),
        ("#" * (MAX_BYTES + 1), "larger than 256 KiB"),
        (BOMB, "once its aliases are expanded"),
        (f"a: &a {'x' * 100_000}\nb: [*a, *a, *a]", "once its aliases are expanded"),
        ("a: " + "1" * 5000, None),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(text: str, message: str | None) -> None:
    if message is None:
        assert "too many digits" in read_yaml(text).mistakes[0].message
        return
    with pytest.raises(StrictYamlError) as caught:
        read_yaml(text)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_the_line_of_a_syntax_error_is_known() -> None:
    with pytest.raises(StrictYamlError) as caught:
        read_yaml("a: 1\nb: 2\nc: d: e\n")
    assert caught.value.line == 3
