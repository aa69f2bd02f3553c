"""Specs: what they mean however they are written, and one line for every mistake."""

import json
import pickle

import pytest

import lenscope as ls
from lenscope.sweeps.spec import read_spec, spec_digest

SPEC = {"model": "tiny", "sources": {"prompts": ["a b", "c"]}, "targets": ["identity"]}


def test_one_value_stands_for_a_list_and_a_name_for_what_has_it(tmp_path):
    written = """
model: {name: tiny}
sources: {prompts: [{text: a b}, c], positions: -1, layers: all}
targets: identity
methods: predict
mappings: identity
"""
    path = tmp_path / "spec.yaml"
    path.write_text(written)
    assert spec_digest(read_spec(path)) == spec_digest(read_spec(SPEC))
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC))
    assert spec_digest(read_spec(path)) == spec_digest(read_spec(SPEC))
    assert spec_digest(read_spec({**SPEC, "top_k": 4})) != spec_digest(read_spec(SPEC))


def test_a_spec_knows_the_file_that_it_came_from_wherever_it_goes(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(SPEC))
    assert read_spec(SPEC).where == "spec"
    assert read_spec(read_spec(path)).where == pickle.loads(pickle.dumps(read_spec(path))).where == "mine.json"
    assert read_spec(path).document() == read_spec(SPEC).document()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"source": {}}, "spec: source: unknown key; did you mean sources?"),
        ({"sources": {"prompts": ["a"], "layer": 1}}, "spec: sources.layer: unknown key; did you mean layers?"),
        ({"sources": {"prompts": ["a", True]}}, "spec: sources.prompts[1].text: is true, no text; put it in quotes"),
        ({"targets": ["identty"]}, "did you mean identity?"),
        ({"targets": [{"text": "a", "att": 0}]}, "spec: targets[0].att: unknown key; did you mean at?"),
        ({"targets": []}, "spec: targets: predict needs a target prompt, such as identity or entity"),
        ({"methods": ["predct"]}, "did you mean predict?"),
        ({"methods": [{"generate": 0}]}, "spec: methods[0].max_new_tokens: is 0; "),
        ({"methods": ["lens"]}, "leave them out, or add predict or generate"),
        ({"methods": [{"predict": {"contrst": 1}}]}, "spec: methods[0].contrst: unknown key; did you mean contrast?"),
        ({"methods": [{"lens": {"contrast": 1}}]}, "spec: methods[0]: contrast: lens runs no target prompt"),
        ({"methods": ["predict", {"kind": "lens", "contrast": 0}]}, "spec: methods[1]: contrast: lens runs no"),
        *(
            (
                {"methods": ["predict", {"generate": {"contrast": wrong}}]},
                f"spec: methods[1].contrast: is {shown}; give a number from 0 to 1000, such as 0.5; 0 is no contrast",
            )
            for wrong, shown in (
                *((-1, "-1"), (-0.5, "-0.5"), (float("nan"), "NaN"), (float("inf"), "Infinity"), (True, "true")),
                *(("0.5", "'0.5'"), ([0.5], "[0.5]"), (None, "null"), (1000.5, "1000.5"), (1e300, "1e+300")),
            )
        ),
        ({"methods": [{"generate": {"contrast": 10**400}}]}, "spec: methods[0].contrast: is 1000"),
        ({"controls": ["rand"]}, "spec: controls[0]: is 'rand'; there are unpatched, random, other-source"),
        ({"top_k": "5"}, "spec: top_k: is '5'; input should be a valid integer"),
        ({"sources": {}}, "spec: sources: give prompts, a list of texts, or file"),
        ({"mappings": [{"path": "a", "scale": 1}]}, "spec: mappings[0]: path and scale: give one of them"),
        (
            {"targets": ["entity", {"name": "entity", "below": "none"}]},
            "spec: targets[1]: rows would call it 'entity', as they do targets[0], which differs; give it a name",
        ),
        (
            {"mappings": [{"scale": 2}, {"scale": 2.0000001}]},
            "spec: mappings[1]: rows would call it 'scale 2', as they do mappings[0]",
        ),
        ({"mappings": [{"scale": 10**400}]}, "spec: mappings[0]: scale inf: give a number"),
        (
            {"sources": {"prompts": [{"text": "a", "answer": "\ud800"}]}},
            "has '\\ud800', half of a surrogate pair",
        ),
        ({"model": 3}, "spec: model: is 3; give keys and values"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(change, line):
    with pytest.raises(ls.LenscopeError) as raised:
        read_spec({**SPEC, **change})
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_method_without_a_contrast_is_written_as_before_there_was_one():
    """The digest is that of lenscope 0.2 before the key: a sweep that was begun then goes on."""
    methods = ["predict", {"generate": 3}, "lens"]
    spec = read_spec({**SPEC, "methods": methods})
    assert spec_digest(spec) == "525324a4bc9027543050a1ff68c87af11e1a43b9e916e3e681e1c4e5d0f3ced1"
    assert not spec.contrasts
    none = [{"predict": {"contrast": 0}}, {"generate": {"max_new_tokens": 3, "contrast": 0.0}}, "lens"]
    assert spec_digest(read_spec({**SPEC, "methods": none})) == spec_digest(spec)
    assert all("contrast" not in method for method in spec.document()["methods"])


def test_a_contrast_is_part_of_a_method_however_it_is_written(tmp_path):
    path = tmp_path / "spec.yaml"
    written = "[{predict: {contrast: 1}}, {generate: {max_new_tokens: 3, contrast: 0.5}}]"
    path.write_text(f"model: tiny\nsources: {{prompts: [a b, c]}}\ntargets: identity\nmethods: {written}\n")
    methods = [{"kind": "predict", "contrast": 1.0}, {"kind": "generate", "max_new_tokens": 3, "contrast": 0.5}]
    spec = read_spec({**SPEC, "methods": methods})
    assert spec_digest(read_spec(path)) == spec_digest(spec)
    assert spec.contrasts
    assert [method["contrast"] for method in spec.document()["methods"]] == [1.0, 0.5]
    assert spec_digest(spec) != spec_digest(read_spec({**SPEC, "methods": ["predict", {"generate": 3}]}))
