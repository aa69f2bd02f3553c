"""What is written to stdout, in whatever encoding it has."""

import io
import json

import pytest

from lenscope.cli import streams
from lenscope.cli.main import main


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "latin-1"])
@pytest.mark.parametrize("command", ["check", "lens", "json", "reproduce"])
def test_a_console_of_any_encoding(model, encoding, command, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    arguments = {
        "check": ["check", model],
        "lens": ["lens", "Привет – 日本", "-m", model],
        "json": ["lens", "Привет – 日本", "-m", model, "--json"],
        "reproduce": ["reproduce"],
    }
    with pytest.raises(SystemExit) as left:
        main(arguments[command])
    assert left.value.code == 0
    text = raw.getvalue().decode(encoding)
    if command == "json":
        assert json.loads(text)["prompt"]["text"] == "Привет – 日本"
    if (command, encoding) == ("check", "ascii"):
        assert "\n+ readout" in text or "+ " in text


def test_json_is_nothing_that_a_terminal_acts_on(monkeypatch):
    value = {"a": "\x9b2J\u202e\ud83d\x7f\u2028 é 日本", "b": [float("nan"), float("inf"), 1.5]}
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    text = streams.as_json(value)
    assert json.loads(text) == {"a": value["a"], "b": [None, None, 1.5]}
    assert "é 日本" in text
    assert not any(c in text for c in "\x9b\u202e\ud83d\x7f\u2028")
    text.encode("utf-8")
