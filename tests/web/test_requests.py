"""Whatever a request holds, it is answered or refused in one line, and never with a failure of the server."""

import hypothesis
import pytest
import schemathesis
from pydantic import ValidationError
from schemathesis.checks import not_a_server_error
from view_server import serve_both, serving

from lenscope.web.requests import PromptIn

SEVERAL = hypothesis.settings(
    max_examples=12, deadline=None, derandomize=True, database=None, phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def described(view_models):
    with serving(serve_both(*view_models, new_tokens=40, rows=30)) as server:
        yield schemathesis.openapi.from_url(f"{server.address}/api/openapi.json")


NAMES = (
    *("info", "tokens", "tokenize", "trajectory", "comparison", "ranks", "patched_trajectory"),
    *("explanation", "grid", "steering", "generation", "export"),
)


def plausible(value, key=""):
    """A request like another, of layers, positions, tokens and names that there are: most of these are answered."""
    if key in ("prompt", "first", "second"):
        return {"ids": [20, 30, 40]}
    if key == "target" and isinstance(value, dict):
        return {"text": "hello x"}
    if key == "request":
        return {"prompt": {"text": "hello"}, "lens": "logit lens"}
    if key == "max_new_tokens":
        return 2
    if key in ("endpoint", "mapping"):
        return "trajectory" if key == "endpoint" else None
    usual = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "strength": 1.5, "operation": "add"}
    usual |= {"contrast": 0.5}
    if key in usual and value is not None:
        return usual[key]
    if isinstance(value, dict):
        return {name: plausible(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [plausible(inner, key) for inner in value[:6]]
    if key in ("lens", "second_lens") and isinstance(value, str):
        return "logit lens"
    if isinstance(value, str):
        return value[:20]
    if isinstance(value, int) and not isinstance(value, bool):
        last = {"layer": 4, "layers": 4, "source_layers": 4, "target_layers": 4, "model": 0}
        last |= {"position": 0, "positions": 0, "into": 0, "ids": 300, "tokens": 300}
        return value % (last[key] + 1) if key in last and value > last[key] else value
    return value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["positive", "plausible", "negative"])
def test_no_request_makes_the_server_fail(described, name, mode):
    method = "GET" if name in ("info", "tokens") else "POST"
    operation = described[f"/api/{name}"][method]
    kind = schemathesis.GenerationMode("negative" if mode == "negative" else "positive")
    strategy = operation.as_strategy(generation_mode=kind)
    documented = {int(status) for status in operation.definition.raw["responses"]}

    statuses = []

    @SEVERAL
    @hypothesis.given(case=strategy)
    def check(case):
        if mode == "plausible" and isinstance(case.body, dict):
            case.body = plausible(case.body)
        answer = case.call()
        statuses.append(answer.status_code)
        case.validate_response(answer, checks=[not_a_server_error])
        assert answer.status_code in documented | {405}
        if answer.status_code >= 400:
            body = answer.json()
            assert list(body) == ["error"]
            assert "\n" not in body["error"]
            assert 0 < len(body["error"]) <= 600

    try:
        check()
    except hypothesis.errors.Unsatisfiable:  # nothing can be wrong in it
        assert mode == "negative"
    if mode == "plausible":
        assert 200 in statuses


def test_a_list_of_wrong_values_is_refused_at_its_first():
    wrong = {"ids": [-5] * 100_000}
    with pytest.raises(ValidationError) as raised:
        PromptIn.model_validate(wrong)
    assert raised.value.error_count() == 1


@pytest.mark.parametrize(
    "body", [b'{"prompt":{"text":"\xff"}}', b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b"{", b"\x00"]
)
def test_a_body_that_is_no_json_is_called_so(view, body):
    answer = view.client.post("/api/tokenize", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the body is no JSON")


def test_a_wrong_value_of_a_field_of_two_types_is_named_by_its_field(view):
    asked = {"prompt": {"text": "hello"}, "lens": "logit lens", "target": -1}
    assert view.post("trajectory", asked).json()["error"].startswith("target: ")
