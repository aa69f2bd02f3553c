"""How fast detectors score prompts that share a system prompt, and how well they show where an e-mail was attacked.

Speed: prompts behind one system prompt of about 200 tokens, scored one by one and as a list, by turns. The same scores
are checked. Places (with --data): attacks are put into e-mails; detectors that were fitted on other e-mails and other
families of attacks, or on deepset's prompts alone, score every position. AUROC of the positions inside the attack
against those outside, by e-mail, its mean with a 95 % interval over e-mails; chance is the same of a span of the same
length that is moved around the prompt's end (a circular shift), and "above chance" the paired difference. "found" is
the share of e-mails in which the oddest span and the attack overlap, "by chance" that of moved spans.

    python benchmarks/detection.py --data ../shared/data/injection/prompt_injections.jsonl
"""

from pathlib import Path

import numpy as np
import timing

import lenscope as ls
from lenscope.detection import Detector, LabelledPrompt, fit_attack_detector, fit_detector, read_labelled_prompts
from lenscope.detection.insertions import insert_texts
from lenscope.detection.outliers import Mahalanobis, Neighbours
from lenscope.detection.prompt_features import measure_prompts
from lenscope.statistics.estimates import auroc, mean
from lenscope.tasks import builtin_questions as quizzes

SYSTEM = (
    "You are the assistant of a small shop for bicycles. You answer questions of customers about orders, deliveries, "
    "repairs and opening hours in a few friendly sentences. "
)
# circular shifts of a span that chance is the mean of
SHIFTS = 25


def main() -> None:
    parser = timing.options(__doc__, repeats=3)
    parser.add_argument("--data", type=Path, help="labelled prompts, with BIPIA's e-mails and attacks among them")
    parser.add_argument("--prompts", type=int, default=32, help="that share the system prompt")
    parser.add_argument("--system-tokens", type=int, default=200)
    parser.add_argument("--emails", type=int, default=40, help="the shortest, half of which are fitted on")
    parser.add_argument("--deepset", type=int, default=80, help="prompts of deepset, as many attacks as harmless ones")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12, 18, 24])
    parser.add_argument("--views", nargs="+", default=["last state", "mean state"])
    parser.add_argument("--only", choices=("speed", "places"))
    args = parser.parse_args()
    lm = ls.load(args.model)
    timing.print_machine()
    results = {}
    if args.only != "places":
        results["speed"] = _speed(lm, args)
    if args.only != "speed" and args.data is not None:
        results["places"] = _places(lm, args)
    timing.print_closing("detection", results, model=args.model)


def _speed(lm: ls.LM, args) -> list[dict]:
    lens = ls.Lens(lm)
    system = lm.encoder.decode((lm.encoder.ids(SYSTEM) * 50)[: args.system_tokens])
    requests = quizzes.REQUESTS.splitlines()
    prompts = [f"{system}\n\nCustomer: {r}" for r in (requests * 10)[: args.prompts]]
    shared = len(lm.encoder.ids(system))
    columns: timing.Columns = {"what": ("detector", 22, ""), "one": ("one by one, prompts/s", 24, ".2f")}
    columns |= {"list": ("as a list, prompts/s", 24, ".2f"), "times": ("times as many", 24, ".2f")}
    columns |= {"gap": ("largest difference", 20, ".1e")}
    print(f"\n{args.model}: {len(prompts)} prompts that begin with the same {shared} tokens, median [quartiles]")
    timing.print_heading(columns)
    rows = []
    read = measure_prompts(lens, prompts, args.layers)
    for view, layers, method in (
        ("trajectory", read.layers, Neighbours(5)),
        ("states", read.layers[-1:], Mahalanobis()),
    ):
        # how it scores matters, and not what: the prompts themselves stand for normal ones
        reference = read.trajectory if view == "trajectory" else read.states[:, -1]
        detector = Detector(lens, view, layers, (), method, reference, 0.0, 0.05, ())
        together = detector.score(prompts)
        alone = np.array([detector.score(p) for p in prompts[:4]])
        clocks = {
            "one": timing.clock(lambda d=detector: [d.score(p) for p in prompts]),
            "list": timing.clock(lambda d=detector: d.score(prompts)),
        }
        times = timing.in_turn(clocks, args.repeats)
        row = {"what": detector.view, "gap": float(np.abs(together[:4] - alone).max() / max(together.std(), 1e-9))}
        row |= {name: timing.spread([len(prompts) / t for t in values]) for name, values in times.items()}
        row["times"] = timing.paired(times["one"], times["list"])
        timing.print_row(columns, row)
        rows.append(row)
    print("largest difference: of the two ways' scores, in standard deviations over prompts")
    return rows


def _places(lm: ls.LM, args) -> list[dict]:
    labelled = read_labelled_prompts(args.data)
    emails = sorted((p for p in labelled if "email" in p.data_set and not p.attack), key=lambda p: len(p.text))
    attacks = [p for p in labelled if p.data_set.startswith("BIPIA") and p.attack]
    random = np.random.default_rng(0)
    emails = [emails[i] for i in random.permutation(min(args.emails, len(emails)))]
    families = sorted({p.family for p in attacks})
    families = [families[i] for i in random.permutation(len(families))]
    fitted, half = {*families[: len(families) // 2]}, len(emails) // 2
    parts = []
    for hosts, mine in ((emails[:half], True), (emails[half:], False)):
        own = [p for p in attacks if (p.family in fitted) == mine]
        own = [own[i] for i in random.permutation(len(own))[: len(hosts)]]
        parts.append(insert_texts(hosts, own, data_set="BIPIA"))
    tested = [p for p in parts[1] if p.attack]
    trained = {"BIPIA, other e-mails and families": parts[0], "deepset": _deepset(labelled, args.deepset, random)}
    columns: timing.Columns = {"fit": ("fitted on", 36, ""), "what": ("looks at", 34, "")}
    columns |= {"auroc": ("AUROC inside", 24, ".3f"), "above": ("above chance", 25, ".3f")}
    columns |= {"found": ("found", 20, ".2f"), "chance": ("by chance", 11, ".2f")}
    print(f"\n{args.model}: where {len(tested)} e-mails were attacked, mean [95 % interval over e-mails]")
    timing.print_heading(columns)
    rows = []
    for name, prompts in trained.items():
        lenses = {"logit lens": ls.Lens(lm)}
        detectors = [fit_attack_detector(lenses, prompts, view=v, layers=args.layers) for v in args.views]
        normal = [p.text for p in prompts if p.normal]
        detectors.append(fit_detector(ls.Lens(lm), normal, methods=["mahalanobis"], layers=args.layers))
        for detector in detectors:
            about = repr(detector).split("(")[1].split(",")[0]
            row = {"fit": name, "what": about} | _how_well_placed(lm, detector, tested)
            timing.print_row(columns, row)
            rows.append(row)
    return rows


def _deepset(labelled: list[LabelledPrompt], count: int, random: np.random.Generator) -> list[LabelledPrompt]:
    own = [p for p in labelled if p.data_set.startswith("deepset") and len(p.text) < 400]
    kinds = [[p for p in own if p.attack == attack] for attack in (True, False)]
    return [kind[i] for kind in kinds for i in random.permutation(len(kind))[: count // 2]]


def _how_well_placed(lm: ls.LM, detector, tested: list[LabelledPrompt]) -> dict:
    areas, above, hits, chances = [], [], [], []
    for prompt in tested:
        where = detector.where(prompt.text)
        start, stop = prompt.span
        inside = np.array([a < stop and b > start for a, b in where.places])[1:]
        scores = where.smoothed[1:].astype(float)
        if inside.all() or not inside.any():
            continue
        shifts = np.random.default_rng(0).integers(1, len(inside), SHIFTS)
        moved = [np.roll(inside, k) for k in shifts]
        areas.append(_area(scores, inside))
        above.append(areas[-1] - np.mean([_area(scores, m) for m in moved]))
        span = slice(max(0, where.span[0] - 1), where.span[1] - 1)
        hits.append(inside[span].any())
        chances.append(np.mean([m[span].any() for m in moved]))
    estimates = {"auroc": mean(areas), "above": mean(above), "found": mean(np.array(hits, dtype=float))}
    row = {name: timing.Spread(e.value, e.low, e.high) for name, e in estimates.items()}
    return {**row, "chance": float(np.mean(chances)), "emails": len(areas)}


def _area(scores: np.ndarray, inside: np.ndarray) -> float:
    return auroc(scores[~inside], scores[inside], resamples=1).value


if __name__ == "__main__":
    main()
