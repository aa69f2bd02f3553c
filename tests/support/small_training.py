"""Small trainings: their texts, plan and blank model."""

from lenscope.fitting.pretraining import Plan, blank

NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jo"]


TEXTS = [
    f"{a} went to the market with {b}, and {b} gave {a} {n * 7} apples. That was on day {n} of the {m}th week. " * 3
    for n, (a, b, m) in enumerate((a, b, m) for a in NAMES for b in NAMES[:3] for m in (2, 5))
]


PLAN = Plan(steps=7, rows=2, every=3, warmup=2, rate=0.01)


def small(**sizes):
    return blank(TEXTS, **{"vocabulary": 300, "layers": 2, "hidden_size": 32, "context": 32, **sizes})


def weights(lm):
    return {name: p.detach().clone() for name, p in lm.model.named_parameters()}
