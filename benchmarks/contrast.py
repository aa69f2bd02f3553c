"""What contrastive decoding changes in what the entity prompt says of states, and of random vectors.

Each entity's last token is patched into the entity prompt at its own layer, and each token is chosen from (1 + α) ·
patched - α · unpatched logits (BALOR, arXiv 2602.00300), for several α. "state" and "random" are the score of
placeholders.py: the share of the reference description's words in the text up to the first comma, less the same share
against the descriptions of other entities; above 0 is knowledge of this entity. "named" is the share of texts, of
states, that have a word of the entity's name in them. 95 % intervals and paired differences by bootstrap over entities.

    python benchmarks/contrast.py ../shared/data/entities/popqa_entities.jsonl --entities 60
"""

import json
from pathlib import Path

import numpy as np
import timing
from placeholders import interval, scores, words

import lenscope as ls
from lenscope.patchscopes import methods, random_vectors


def main() -> None:
    parser = timing.options(__doc__, repeats=None)
    parser.add_argument("entities_file", type=Path)
    parser.add_argument("--entities", type=int, default=60, help="the most popular with a description")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12, 18, 24])
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0])
    parser.add_argument("--new-tokens", type=int, default=12)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.entities_file.read_text().splitlines()]
    rows = sorted((r for r in rows if r["description"]), key=lambda r: -r["popularity"])[: args.entities]
    references = [words(r["description"]) - words(r["name"]) for r in rows]
    described = [n for n, reference in enumerate(references) if reference]
    rows, references = [rows[n] for n in described], [references[n] for n in described]
    lm = ls.load(args.model)
    states = lm.read([r["name"] for r in rows], args.layers, positions=-1)
    scope = methods.entity_description(lm)
    by_alpha = []
    for alpha in args.alphas:
        by_way = {}
        for way, sources in (("state", states), ("random", random_vectors(states))):
            grid = scope.generate(sources, max_new_tokens=args.new_tokens, contrast=alpha)
            # sources run over entities, then layers
            texts = np.array(grid.texts, dtype=object).reshape(len(rows), len(args.layers))
            by_way[way] = scores(texts, references, np.random.default_rng(0))
            if way == "state":
                named = [[bool(words(t) & words(r["name"])) for t in row] for row, r in zip(texts, rows, strict=True)]
                by_way["named"] = np.array(named, dtype=float)
        by_alpha.append(by_way)
    draw = np.random.default_rng(1)
    columns: timing.Columns = {"alpha": ("α", 5, ".1f"), "layer": ("layer", 7, "")}
    columns |= {name: (name, 26, ".3f") for name in ("state", "state - no contrast", "random", "named")}
    timing.print_machine()
    print(f"{args.model}, {len(rows)} entities; share of the description's words above that of others'")
    timing.print_heading(columns)
    results = []
    for alpha, by_way in zip(args.alphas, by_alpha, strict=True):
        by_column = {**by_way, "state - no contrast": by_way["state"] - by_alpha[0]["state"]}
        for n, layer in [*enumerate(args.layers), (None, "all")]:
            cells = {name: interval(c.mean(1) if n is None else c[:, n], draw) for name, c in by_column.items()}
            results.append({"alpha": alpha, "layer": str(layer), **cells})
            timing.print_row(columns, results[-1])
    timing.print_closing("contrast", results, model=args.model, layers=args.layers, entities=len(rows))


if __name__ == "__main__":
    main()
