"""nla_meta.yaml: read in the versions that are published, refused in one line where it says what cannot be."""

import asking
import pytest
from autoencoders import meta, write_meta

import lenscope as ls
from lenscope.verbalisers.autoencoder_contracts import filled, read_autoencoder_contract


@pytest.fixture(scope="module")
def tokenizer():
    return asking.tokenizer()


def test_both_roles_are_read(tokenizer, tmp_path):
    contract = read_autoencoder_contract(write_meta(tmp_path, meta(tokenizer)))
    assert (contract.role, contract.width, contract.layer, contract.scale) == ("verbaliser", 32, 3, 7.5)
    assert contract.mark == asking.MARK
    assert contract.suffix_ids == ()
    contract = read_autoencoder_contract(write_meta(tmp_path, meta(tokenizer, "ar")) / "nla_meta.yaml")
    assert (contract.role, contract.scale) == ("reconstructor", None)
    assert len(contract.suffix_ids) > 1


def test_names_and_fields_of_other_versions_are_read(tokenizer, tmp_path):
    said = meta(tokenizer, role="critic", extraction_layer_index=...)
    said["prompt_templates"] = {"actor": said["prompt_templates"]["av"], "critic": said["prompt_templates"]["ar"]}
    said["critic"] = {"extraction_layer_index": 20}
    said["ar"] = {"num_hidden_layers": 20}
    said["extraction"] |= {"injection_scale": "sqrt_d_model"}
    contract = read_autoencoder_contract(write_meta(tmp_path, said))
    assert (contract.role, contract.layer, contract.scale) == ("reconstructor", 21, 32**0.5)
    said = meta(tokenizer, extraction_layer_index=...)
    del said["role"]
    contract = read_autoencoder_contract(write_meta(tmp_path, said))
    assert (contract.role, contract.layer) == ("verbaliser", None)


FAULTS = [
    ({"kind": "nla_dataset"}, "is of kind 'nla_dataset', and the half of an autoencoder is nla_model"),
    ({"role": "judge"}, "has role 'judge'; there are av, actor, ar, critic"),
    ({"d_model": "32"}, "d_model is '32', and must be a whole number from 1 on"),
    ({"d_model": ...}, "it lacks 'd_model'"),
    ({"extraction__injection_scale": ...}, "says no extraction.injection_scale"),
    ({"extraction__injection_scale": "raw"}, "says no extraction.injection_scale"),
    ({"extraction__injection_scale": -1}, "injection_scale is -1, and must be a number above 0"),
    ({"extraction__injection_scale": True}, "injection_scale is True"),
    ({"extraction": []}, "extraction is no mapping"),
    ({"tokens__injection_token_id": -1}, "injection_token_id is -1"),
    ({"tokens__injection_char": ""}, "injection_char ''"),
    ({"tokens__critic_suffix_ids": ["a"]}, "critic_suffix_ids are no token ids"),
    ({"prompt_templates": {}}, "prompt_templates.av is no text"),
    ({"prompt_templates__av": "no mark"}, "the prompt has no place {injection_char}"),
    ({"prompt_templates__av": "{injection_char.__class__}"}, "a place {injection_char.__class__}"),
    ({"prompt_templates__av": "{injection_char!r}"}, "the prompt has a place"),
    ({"prompt_templates__av": "{injection_char} {"}, "is no nla_meta.yaml of an autoencoder's half"),
    ({"role": "ar", "prompt_templates__ar": ...}, "has no prompt_templates.ar"),
    ({"critic": {"extraction_layer_index": 7}}, "its layers contradict each other: 2, 7"),
]


@pytest.mark.parametrize(("fault", "said"), FAULTS, ids=[next(iter(f)) + str(n) for n, (f, _) in enumerate(FAULTS)])
def test_what_cannot_be_is_refused_in_one_line(fault, said, tokenizer, tmp_path):
    write_meta(tmp_path, meta(tokenizer, **fault))
    with pytest.raises(ls.LenscopeError) as error:
        read_autoencoder_contract(tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "nla_meta.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1\n", "is of kind 'None'"),
        ("a: [", "is no YAML"),
        ("a: !!python/object:os.system x", "is no YAML"),
        (None, "no such file"),
    ],
)
def test_what_is_no_contract_is_refused(text, said, tmp_path):
    if text is not None:
        (tmp_path / "nla_meta.yaml").write_text(text)
    with pytest.raises(ls.LenscopeError, match=said):
        read_autoencoder_contract(tmp_path)


def test_places_are_filled_as_by_format():
    template = "{{x}} {a} and {a}"
    assert filled(template, "a", "{b}") == template.format(a="{b}") == "{x} {b} and {b}"
