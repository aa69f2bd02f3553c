"""The card of a mapping on the hub: README.md, made of what its report says, and of nothing else.

Knows: what a reader of a hub page asks of a lens: what it is, of what it was made, how good it is, how it is loaded,
what it cannot tell. Does not know: how a mapping is saved or pushed (mapping.py), how anything was measured.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lenscope.models.loading import BUILT_IN

_TUNED = (
    "A tuned lens (Belrose et al. 2023, [arXiv 2303.08112](https://arxiv.org/abs/2303.08112)) has an affine map for "
    "each layer. It turns the layer's hidden state into one that the model's own readout decodes; the maps were "
    "fitted so that the result predicts what the model itself predicts at the end."
)
_JACOBIAN = (
    "A Jacobian lens (Gurnee et al. 2026) has a matrix J for each layer: the mean, over prompts and positions, of the "
    "derivatives of the last layer's states with respect to this layer's. Nothing was trained. J h, decoded by the "
    "model's own readout, says what a state h disposes the model to say, now or later in the text."
)
_RELP = (
    "The gradients follow the rules of relevance propagation (RelP, [arXiv 2508.21258](https://arxiv.org/abs/"
    "2508.21258)): norms and attention patterns count as constants. Such a lens is called an R-lens."
)
_MAPPING = "A mapping from hidden states of one layer to hidden states of another, as weights for each pair of layers."
_LIMITS = (
    "It reads the model that it was fitted for. lenscope refuses any other.",
    "Its words say what a state predicts under this map. They are no proof that the model uses it for that: a causal "
    "test is another experiment.",
    "The numbers above hold for text like the one that they were measured on.",
)


def model_card(config: Mapping[str, Any], repo_id: str) -> str:
    """The text of README.md for a mapping, whose config.json holds `config`, in the repository `repo_id`."""
    report = config.get("report")
    report = report if isinstance(report, dict) else {}
    source, target = config["source"], config["target"]
    lens = report.get("lens") if isinstance(report.get("lens"), str) else None
    model = hub_name(source["model"])
    licence = _licence_of(report)
    front: dict[str, Any] = {"library_name": "lenscope"}
    if "/" in model and not model.startswith(("/", ".", "~")):
        front["base_model"] = model
    if licence:
        front["license"] = "other"
        front["license_name"] = _markdown(licence)
    named = re.sub(r"[^a-z0-9]+", "-", (lens or "").lower()).strip("-")
    front["tags"] = ["lenscope", "interpretability", *([named] if named else [])]
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    between = model if source == target else f"{model} → {hub_name(target['model'])}"
    lines += [f"# {_markdown(lens[0].upper() + lens[1:] if lens else 'Mapping')} of {_markdown(between)}", ""]
    lines += [{"tuned lens": _TUNED, "Jacobian lens": _JACOBIAN, "R-lens": _JACOBIAN}.get(lens or "", _MAPPING), ""]
    if report.get("rule") == "relp":
        lines += [_RELP, ""]
    if isinstance(report.get("unfinished"), str):
        lines += [f"**This lens is {_markdown(report['unfinished'])}.**", ""]
    lines += [
        "| | |",
        "|---|---|",
        *(f"| {name} | {_markdown(value)} |" for name, value in _made_of(config, report)),
        "",
    ]
    lines += _measured_by_layer(report)
    lines += ["## How to load it", "", "```python", "import lenscope as ls", ""]
    if source == target:
        lines += [
            f"lm = ls.load({json.dumps(source['model'], ensure_ascii=False)})",
            f"lens = ls.Lens(lm, ls.load_lens({json.dumps(repo_id)}, lm))",
            'print(lens.trajectory("The Eiffel Tower is in the city of").table())',
        ]
    else:
        lines += ["# the folder of this repository, once fetched", 'mapping = ls.load_mapping("folder")']
    lines += ["```", "", "## What it cannot tell", "", *(f"- {limit}" for limit in _limits_of(report)), ""]
    return "\n".join(lines)


def hub_name(model: Any) -> str:
    """The name of a model on the hub, of one that is built in too."""
    return BUILT_IN[model].hub_id if model in BUILT_IN else str(model)


def _markdown(value: object) -> str:
    """A value as text of one line that neither ends a cell of a table nor is a tag of a page."""
    text = " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")[:400]


def _corpus_of(report: Mapping[str, Any]) -> Mapping[str, Any]:
    corpus = report.get("corpus")
    return corpus if isinstance(corpus, dict) else {"data": corpus} if isinstance(corpus, str) else {}


def _licence_of(report: Mapping[str, Any]) -> str | None:
    """The licence of the text, where the report knows one."""
    named = [part.get(word) for part in (_corpus_of(report), report) for word in ("license", "licence")]
    return next((name for name in named if isinstance(name, str) and name.strip()), None)


def _made_of(config: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What the lens was made of, a row each; what a report does not say is left out."""
    source, target, corpus = config["source"], config["target"], _corpus_of(report)
    sides = [("model", source)] if source == target else [("source model", source), ("target model", target)]
    rows: list[tuple[str, object]] = []
    for name, model in sides:
        sizes = f"{model['n_layers']} layers of {model['hidden_size']}"
        rows.append((name, f"{hub_name(model['model'])} ({sizes}, {model.get('dtype', 'dtype not known')})"))
        if model.get("model_hash"):
            rows.append(("SHA-256 of its weights and settings", model["model_hash"].removeprefix("sha256:")))
    pairs = [p for p in config.get("pairs", []) if p is not None]
    rows.append(("maps", f"{len(pairs) or 'one for all layers'}, {config.get('kind')}"))
    recipe = report.get("recipe")
    amounts = [
        ("text", corpus.get("data")),
        ("licence of the text", _licence_of(report)),
        ("tokens", report.get("tokens")),
        ("prompts", report.get("prompts")),
        ("tokens in a row", corpus.get("length")),
        ("recipe", recipe.get("name") if isinstance(recipe, dict) else recipe),
        ("seed", report.get("seed", corpus.get("seed"))),
    ]
    rows += [(name, f"{n:,}" if type(n) is int and name != "seed" else n) for name, n in amounts if _is_plain(n)]
    return rows


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


# column of the table → (key in a row of the report, key of its interval)
_COLUMNS = {
    "KL(model ‖ lens), nats": ("kl", "kl_95"),
    "KL of the logit lens, nats": ("kl_logit_lens", "kl_logit_lens_95"),
    "less by, nats": ("gain", "gain_95"),
    "halves agree: top-1": ("top1", "top1_95"),
    "top-10": ("top10", "top10_95"),
    "cosine": ("cosine", "cosine_95"),
}


def _measured_by_layer(report: Mapping[str, Any]) -> list[str]:
    """The table of what was measured by layer, with intervals; a sentence where nothing was."""
    rows = [row for row in report.get("layers") or [] if isinstance(row, dict) and "layer" in row]
    columns = {name: keys for name, keys in _COLUMNS.items() if any(row.get(keys[0]) is not None for row in rows)}
    if not columns:
        return ["## How good it is", "", "Its report has no measurements. `lenscope eval` makes them.", ""]
    lines = ["## How good it is", "", "Measured on text that was not fitted; in brackets are 95 % intervals."]
    if any(name.startswith("halves") for name in columns):
        lines[-1] += (
            " The halves are two lenses, each of one half of the prompts: how often their readouts have the same first "
            "word, how many of their first ten words they share, and the cosine of their centred logits."
        )
    lines += ["", f"| layer | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row in rows:
        cells = [_value_and_ends(row.get(value), row.get(ends)) for value, ends in columns.values()]
        lines.append(f"| {_markdown(row['layer'])} | {' | '.join(cells)} |")
    return [*lines, ""]


def _value_and_ends(value: Any, ends: Any) -> str:
    if not isinstance(value, int | float):
        return "–"
    interval = isinstance(ends, Sequence) and len(ends) == 2 and all(isinstance(e, int | float) for e in ends)
    return f"{value:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if interval else "")


def _limits_of(report: Mapping[str, Any]) -> list[str]:
    limits = list(_LIMITS)
    rows = [row for row in report.get("layers") or [] if isinstance(row, dict)]
    ends = {str(row.get("layer")): row.get("gain_95") for row in rows}
    worse = [layer for layer, two in ends.items() if isinstance(two, list) and len(two) == 2 and _is_below(two[1])]
    if worse:
        limits.append(f"At the layers {', '.join(worse)} its KL is above that of the logit lens.")
    if report.get("lens") in ("Jacobian lens", "R-lens"):
        limits.append(
            "It was not made to guess the next token, and other lenses may do that better. Where the halves of the "
            "prompts do not agree, as in early layers, other prompts would have given other words."
        )
    return limits


def _is_below(value: Any) -> bool:
    return isinstance(value, int | float) and value < 0
