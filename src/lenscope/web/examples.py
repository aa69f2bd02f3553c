"""Worked examples for an empty page: what to look at, and why it is worth looking.

Knows: prompts and the cells of them that say something in the built-in model. Does not know: models, the page.
"""

from typing import Any

# `state` has values of the page's state (app/url_state.js) where they are not those of an empty page; pins by text
EXAMPLES: list[dict[str, Any]] = [
    {
        "title": "A fact is recalled",
        "why": "The capital is named in the upper layers only; below, the model repeats what it read.",
        "state": {"text": "The Eiffel Tower is in the city of", "pins": [" Paris"], "measure": "max_probability"},
    },
    {
        "title": "A state is read in words",
        "why": "The state of a name's last token, patched into a list of descriptions, says who it is.",
        "state": {
            "text": "The founder of Microsoft, Bill Gates",
            "cell": [4, 7],
            "goal": "entity",
        },
    },
    {
        "title": "Two prompts part",
        "why": "One word differs; the distance shows in which layer, and at which tokens, that begins to matter.",
        "state": {"text": "She put the milk into the", "compare": "prompt", "text2": "She put the money into the"},
    },
    {
        "title": "A pattern is continued",
        "why": "The repeated name is predicted from early layers on: it is copied, not recalled.",
        "state": {"text": "Mary and John went to the shop. Mary and", "pins": [" John"], "measure": "entropy"},
    },
    {
        "title": "A sum",
        "why": "Watch the rank of the right digit: a small model is sure that a number comes, and not which.",
        "state": {"text": "3 + 4 =", "pins": [" 7", " "], "measure": "rank"},
    },
]
