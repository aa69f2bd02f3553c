"""The command that says what was found in a model."""

import json


def test_findings_are_lines_or_json(run, model):
    status, out, err = run("check", model)
    assert (status, err) == (0, "")
    assert out.startswith("tiny-llama\n")
    found = json.loads(run("check", model, "--json")[1])
    assert found["holds"] is True
    assert [line.split()[1] for line in out.splitlines()[1:]] == [f["name"].split()[0] for f in found["findings"]]


def test_a_mistake_is_one_line_and_status_2(mistaken):
    assert "no such folder" in mistaken("check", "/nowhere")
