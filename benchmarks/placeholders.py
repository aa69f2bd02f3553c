"""What a placeholder's own keys and values do to an entity's description, and what leaving them out changes.

Each entity's last token is patched into the entity prompt at its own layer, with Target(below=...) "target", "none" and
"source" (lenscope.Target says what each means). Score: the share of the reference description's words (lower case, no
stop words, each once) that are in the text written up to the first comma, less the same share against the
descriptions of other entities (the shuffled control): above 0 is knowledge of this entity. 95 % intervals and paired
differences by bootstrap over entities.

    python benchmarks/placeholders.py ../shared/data/entities/popqa_entities.jsonl --entities 60
"""

import json
import re
from pathlib import Path

import numpy as np
import timing

import lenscope as ls
from lenscope.patchscopes import methods

BELOW = ("target", "none", "source")
STOP = set(
    re.findall(
        r"\w+", "a an the of in and or to for by on at as is was were from with that which its his her their who"
    )
)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - STOP


def scores(texts: np.ndarray, references: list[set[str]], draw: np.random.Generator) -> np.ndarray:
    """(entities, layers): share of the own reference's words, less the mean share of ten others'."""
    shares = np.zeros(texts.shape)
    others = [draw.permutation([m for m in range(len(texts)) if m != n])[:10] for n in range(len(texts))]
    for n, row in enumerate(texts):
        for layer, text in enumerate(row):
            written = words(text.lstrip(" :,").split(",")[0])
            own = len(written & references[n]) / len(references[n])
            shares[n, layer] = own - np.mean([len(written & references[m]) / len(references[m]) for m in others[n]])
    return shares


def interval(values: np.ndarray, draw: np.random.Generator) -> timing.Spread:
    """The mean and its 95 % interval."""
    means = values[draw.integers(0, len(values), (2000, len(values)))].mean(1)
    return timing.Spread(float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist())


def main() -> None:
    parser = timing.options(__doc__, repeats=None)
    parser.add_argument("entities_file", type=Path)
    parser.add_argument("--entities", type=int, default=60, help="the most popular with a description")
    parser.add_argument("--step", type=int, default=2, help="every so many layers")
    parser.add_argument("--new-tokens", type=int, default=12)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.entities_file.read_text().splitlines()]
    rows = sorted((r for r in rows if r["description"]), key=lambda r: -r["popularity"])[: args.entities]
    references = [words(r["description"]) - words(r["name"]) for r in rows]
    described = [n for n, reference in enumerate(references) if reference]
    rows, references = [rows[n] for n in described], [references[n] for n in described]
    lm = ls.load(args.model)
    layers = list(range(0, lm.n_layers + 1, args.step))
    states = lm.read([r["name"] for r in rows], positions=-1)
    target = methods.named_target("entity")
    shares = {}
    for below in BELOW:
        scope = ls.Patchscope(lm, ls.Target(target.prompt, target.at, target.every, below))
        grid = scope.generate(states, [(n, n) for n in layers], max_new_tokens=args.new_tokens)
        # sources run over entities, then layers
        texts = np.array(grid.texts, dtype=object).reshape(len(rows), len(layers))
        shares[below] = scores(texts, references, np.random.default_rng(0))
    draw = np.random.default_rng(1)
    by_column = {**shares, **{f"{b} - target": shares[b] - shares["target"] for b in BELOW[1:]}}
    columns: timing.Columns = {"layer": ("layer", 7, ""), **{name: (name, 26, ".3f") for name in by_column}}
    timing.print_machine()
    print(f"{args.model}, {len(rows)} entities; share of the description's words above that of others'")
    timing.print_heading(columns)
    results = []
    for n, layer in [*enumerate(layers), (None, "all")]:
        cells = {name: interval(c.mean(1) if n is None else c[:, n], draw) for name, c in by_column.items()}
        results.append({"layer": str(layer), **cells})
        timing.print_row(columns, results[-1])
    timing.print_closing("placeholders", results, model=args.model, layers=layers, entities=len(rows))


if __name__ == "__main__":
    main()
