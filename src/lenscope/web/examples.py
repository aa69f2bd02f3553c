"""Worked examples for an empty page: what to look at, and why it is worth looking.

Knows: prompts, and states in them, that say something in the built-in model. Does not know: models, how one is opened.
"""

from typing import Any

FRANCE, JAPAN = "The capital of France is the city of", "The capital of Japan is the city of"

# `state` holds the page's own fields, as an address of it does; pins are texts of tokens, which the page looks up
EXAMPLES: list[dict[str, Any]] = [
    {
        "title": "A fact is recalled",
        "why": "Through the logit lens, thousands of tokens are more probable than “ Paris” up to layer 23; six layers "
        "later it is the answer. A tuned lens sees it some layers earlier. Press p on a cell to follow its token.",
        "state": {
            "text": "The Eiffel Tower is in the city of",
            "ran": "trajectory",
            "pins": [" Paris"],
        },
    },
    {
        "title": "A state says what it means",
        "why": "The state of “ Stones” at layer 12, written into a list of descriptions, is called a rock band. "
        "Beside it: what the model says without it, and with a random vector.",
        "state": {
            "text": "The Rolling Stones",
            "ran": "trajectory",
            "cell": [12, 2],
            "tab": "meaning",
            "asked": "meaning",
            "goal": "entity",
            "reference": "rock band",
        },
    },
    {
        "title": "A state is moved",
        "why": "“ France” at layer 12, in the place of “ Japan”, makes Tokyo Paris. From layer 24 on it changes "
        "nothing: by then the last token has fetched its answer. Drag other cells to see where that happens.",
        "state": {
            "text": FRANCE,
            "ran": "trajectory",
            "cell": [12, 3],
            "tab": "move",
            "asked": "move",
            "taken": {"prompt": {"text": FRANCE}, "layer": 12, "position": 3, "token": " France"},
            "intoText": JAPAN,
            "placed": [12, 3],
        },
    },
    {
        "title": "A difference steers",
        "why": "The state of “ angry” less that of “ happy”, added at layer 20, fills a story with fury; with "
        "strength −0.5 it is joy. Beyond ±1.5 the text falls apart, and says nothing of the vector.",
        "state": {
            "text": "When she read the letter, she felt",
            "ran": "trajectory",
            "cell": [20, 7],
            "tab": "steer",
            "asked": "steer",
            "taken": {"prompt": {"text": "They are angry"}, "layer": 20, "position": 2, "token": " angry"},
            "minus": {"prompt": {"text": "They are happy"}, "layer": 20, "position": 2, "token": " happy"},
            "strength": 1,
        },
    },
    {
        "title": "Two prompts part",
        "why": "One word differs. The distance of the two runs shows where that matters: at once at the word itself,"
        " at the last token only from layer 24 on.",
        "state": {"text": FRANCE, "compare": "prompt", "text2": JAPAN, "ran": "comparison", "measure": "between:js"},
    },
]
