"""The card of a lens says what its report says, in Markdown that nothing in a report breaks."""

import json

import yaml

from lenscope.mappings.model_card import model_card

MODEL = {"model": "smollm2-135m", "model_hash": "sha256:abc", "dtype": "float32", "n_layers": 3, "hidden_size": 8}
ROW = {"layer": 1, "kl": 1.25, "kl_95": [1.0, 1.5], "kl_logit_lens": 3.0, "kl_logit_lens_95": None}


def card(report, model=MODEL, target=None, repo_id="me/lens"):
    config = {"kind": "affine", "pairs": [[0, 3], [1, 3]], "source": model, "target": target or model}
    return model_card({**config, "report": report}, repo_id)


def front(text):
    start, about, _ = text.split("---\n", 2)
    assert not start
    return yaml.safe_load(about)


def test_a_card_has_what_the_report_says():
    corpus = {"data": "texts.jsonl", "length": 128, "seed": 0, "license": "CC BY-SA 4.0"}
    gain = {"gain": 1.75, "gain_95": [1.5, 2.0]}
    report = {"lens": "tuned lens", "corpus": corpus, "tokens": 20_480, "recipe": {"name": "ridge"}, "seed": 0}
    text = card({**report, "layers": [{**ROW, **gain}, {"layer": 2, "kl": None, "gain_95": [-0.5, -0.25]}]})
    assert front(text) == {
        "library_name": "lenscope",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "other",
        "license_name": "CC BY-SA 4.0",
        "tags": ["lenscope", "interpretability", "tuned-lens"],
    }
    for line in (
        "# Tuned lens of HuggingFaceTB/SmolLM2-135M-Instruct",
        "| model | HuggingFaceTB/SmolLM2-135M-Instruct (3 layers of 8, float32) |",
        "| SHA-256 of its weights and settings | abc |",
        "| text | texts.jsonl |",
        "| licence of the text | CC BY-SA 4.0 |",
        "| tokens | 20,480 |",
        "| recipe | ridge |",
        "| seed | 0 |",
        "| layer | KL(model ‖ lens), nats | KL of the logit lens, nats | less by, nats |",
        "| 1 | 1.250 (1.000 to 1.500) | 3.000 | 1.750 (1.500 to 2.000) |",
        "| 2 | – | – | – |",
        'lm = ls.load("smollm2-135m")',
        'lens = ls.Lens(lm, ls.load_lens("me/lens", lm))',
        "- At the layers 2 its KL is above that of the logit lens.",
    ):
        assert line in text.splitlines(), line
    assert "prompts" not in text
    assert "halves" not in text


def test_a_jacobian_lens_has_the_agreement_of_its_halves():
    rows = [{"layer": 1, "top1": 0.5, "top1_95": [0.25, 0.75], "cosine": 0.9, "cosine_95": [0.8, 1]}]
    report = {"lens": "R-lens", "prompts": 100, "rule": "relp", "layers": rows}
    text = card({**report, "unfinished": "unfinished: x"})
    for line in (
        "# R-lens of HuggingFaceTB/SmolLM2-135M-Instruct",
        "| prompts | 100 |",
        "| layer | halves agree: top-1 | cosine |",
        "| 1 | 0.500 (0.250 to 0.750) | 0.900 (0.800 to 1.000) |",
        "**This lens is unfinished: x.**",
    ):
        assert line in text.splitlines(), line
    assert front(text)["tags"][-1] == "r-lens"
    assert "A Jacobian lens (Gurnee et al. 2026)" in text
    assert "relevance propagation" in text
    assert "relevance propagation" not in card({"lens": "Jacobian lens"})


def test_a_card_of_nothing_known_says_so():
    local = {"model": "/home/me/model", "n_layers": 3, "hidden_size": 8}
    text = card({}, local)
    assert front(text) == {"library_name": "lenscope", "tags": ["lenscope", "interpretability"]}
    assert "Its report has no measurements." in text
    assert "licence" not in text
    assert "ls.load_mapping" in card({}, MODEL, {**MODEL, "model": "other"})


def test_what_a_report_holds_breaks_no_table_and_no_page():
    bad = 'a|b\n---\n<script>"x"</script>```'
    for report in (
        {"lens": bad, "corpus": {"data": bad, "license": bad}, "tokens": bad, "layers": [{"layer": bad, "kl": 1.0}]},
        {"lens": 3, "corpus": 3, "layers": 3 * [None], "prompts": [1], "recipe": 4.0},
        {"layers": [{"layer": 1, "kl": 1.0, "kl_95": "ab", "gain_95": ["x", "y"]}]},
    ):
        text = card(report)
        assert isinstance(front(text), dict)
        assert "<script" not in text.split("---\n", 2)[2]
        assert text.count("```") == 2
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert all(line.endswith("|") for line in tables)
        json.dumps(text)
