"""YAML files whose content is not what it seems to be: refused in one line that names the file."""

from pathlib import Path

import pytest
import yaml

from fastmlp.yaml_file import read_yaml

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: 1\nseed: 2\nlr: 3", r"x\.yaml, line 3: 'lr' is there twice"),
        ("cfg:\n  lr: 1\n  'lr': 3", r"x\.yaml, line 3: 'lr' is there twice"),
        ("arms:\n  1: {}\n  1.0: {}", r"line 3: '1\.0' is there twice"),
        ("arms: {a: {lr: 1, lr: 2}}", "line 1: 'lr' is there twice"),
        ("seed: 010", r"x\.yaml, line 1: 010 is ambiguous: quote it"),
        ("a:\n- -0_17", "line 2: -0_17 is ambiguous"),
        ("010: 1", "010 is ambiguous"),
        ("epochs: 1:30", "line 1: 1:30 is ambiguous"),
        ("epochs: 1:30:30.5", "1:30:30.5 is ambiguous"),
        ("run_dir: 2024-01-31", "2024-01-31 is ambiguous"),
        ("a: &x [*x]", "line 1: 100,000 values or more, or an alias of what it is in"),
        (BOMB, "100,000 values or more"),
        (BOMB.replace("[", "{<<: [").replace("]", "]}").replace("{<<: [x]}", "{k: 1}"), "100,000 values or more"),
        ("a: " + "[" * 500, "nested too deeply"),
        ("a: " + "9" * 5000, "line 1: 99.* is no number of a setting: it has 5,000 digits"),
        ("a: 0x" + "f" * 5000, "line 1: 0x.* is no number of a setting"),
        ("a: !!bool maybe", "line 1: 'maybe' does not fit its tag"),
        ("b:\na: !!timestamp x", "line 2: 'x' does not fit its tag"),
        ('a: !!int "010"', "line 1: 010 is ambiguous"),
        ("b:\n!!seq x: 1", "line 2: a key must be one word"),
        ('b:\na: "\\Uffffffff"', r"x\.yaml, line 2 is not a YAML file: "),
        ("b: é\na: \x07", r"x\.yaml, line 2 is not a YAML file: expected text in UTF-8, found the byte 0x07"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("? [1]\n: 2", "a key must be one word"),
        ("a: 1\n---\nb: 2", "line 2 is not a YAML file: but found another document"),
        ("a: [", "line 1 is not a YAML file: "),
        ("x" * 1_000_001, "it has 1,000,001 bytes"),
    ],
    ids=range(27),
)
def test_refused(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_all_else_is_read_as_pyyaml_does(tmp_path):
    path = tmp_path / "x.yaml"
    for content in (
        "",
        "a: &x {b: 1, c: [0, 0.5, -1_000, 0x10, 08, '010', \"1:30\", 1e-3, .inf, true, 192.168.1.10:80]}\nd: *x",
        "a: &x {b: 1}\nc: {<<: *x, b: 2}",
        "\ufeffa: '2024-01-31'",
    ):
        path.write_text(content, encoding="utf-8")
        assert read_yaml(path) == yaml.safe_load(content)
    stored = {"texts": ["010", "08", "1:30", "2024-01-31", "\udcff", "~", "1e3"]}
    path.write_text(yaml.safe_dump(stored))
    assert read_yaml(path) == stored


def test_what_is_no_text_file(tmp_path):
    for content in (b"b:\na: \xff", "b:\na: é".encode("latin-1"), "\n".encode("utf-16-be") + b"\n\xff"):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.yaml, line \d is not a YAML file: expected text in UTF-8, found the"):
            read_yaml(tmp_path / "x.yaml")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"/dev/zero is missing"):
        read_yaml(Path("/dev/zero"))
