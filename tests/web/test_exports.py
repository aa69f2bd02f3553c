"""What leaves the server as files is the result that was asked for."""

import json

import numpy as np
import pytest

import lenscope as ls

TEXT = "The capital of France is"
TRAJECTORY = {"prompt": {"text": TEXT}, "lens": "logit lens"}


def export(view, endpoint, request, form):
    return view.post("export", {"endpoint": endpoint, "request": request, "format": form})


def test_a_trajectory_as_json_and_parquet_is_read_again(view, view_models, tmp_path):
    own = ls.Lens(view_models[0]).trajectory(TEXT)
    for form in ("json", "parquet"):
        answer = export(view, "trajectory", TRAJECTORY, form)
        assert answer.status_code == 200
        assert f'.{form}"' in answer.headers["content-disposition"]
        path = tmp_path / f"result.{form}"
        path.write_bytes(answer.content)
        loaded = ls.load_results(path)
        loaded = loaded[0] if isinstance(loaded, list) else loaded
        np.testing.assert_allclose(loaded.entropy, own.entropy, rtol=1e-4, atol=1e-5)


def test_a_page_holds_its_result_and_no_script_of_others(view):
    hostile = "</script><script>alert(1)</script>\u202e"
    answer = export(view, "trajectory", {**TRAJECTORY, "prompt": {"text": hostile}}, "html")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "<script>alert" not in answer.text
    assert "Content-Security-Policy" in answer.text


def test_a_result_that_was_computed_is_not_computed_again(view):
    request = {"prompt": {"text": "only once"}, "lens": "logit lens"}
    view.post("trajectory", request)
    assert view.idle()
    before = view.answers.workers[0].done
    for form in ("html", "json", "parquet", "python"):
        assert export(view, "trajectory", request, form).status_code == 200
    assert view.answers.workers[0].done == before


@pytest.mark.parametrize("form", ["json", "python"])
def test_an_explanation_has_json_and_python(view, form):
    request = {
        "prompt": {"text": TEXT},
        "layer": 1,
        "position": -1,
        "target": {"text": "x"},
        "layers": [1],
        "max_new_tokens": 2,
    }
    answer = export(view, "explanation", request, form)
    assert answer.status_code == 200
    if form == "json":
        assert json.loads(answer.content)[-1]["event"] == "done"
    refused = export(view, "explanation", request, "parquet")
    assert (refused.status_code, "JSON and Python" in refused.json()["error"]) == (422, True)


def test_what_is_wrong_in_the_request_within_is_told(view):
    for form in ("json", "python"):
        answer = export(view, "trajectory", {"prompt": {"text": TEXT}, "lens": "nothing"}, form)
        assert (answer.status_code, "there are logit lens" in answer.json()["error"]) == (422, True)
        answer = export(view, "trajectory", {"prompt": {"text": TEXT}}, form)
        assert (answer.status_code, answer.json()["error"][:12]) == (422, "request.lens")
    assert export(view, "nothing", {}, "json").status_code == 422
    assert export(view, "trajectory", TRAJECTORY, "pdf").status_code == 422


def test_a_generation_is_exported_as_the_trajectory_of_all_of_it(view, tmp_path):
    request = {**TRAJECTORY, "max_new_tokens": 3}
    answer = export(view, "generation", request, "json")
    assert answer.json()["kind"] == "trajectory"
