"""The modules of the view: many small files of JavaScript and CSS, which a page carries as one script and one style.

Knows: where they lie, how their imports put them in order. Does not know: what they draw.
"""

import re
from functools import cache
from importlib.resources import files

# the only kind of import that modules of the view have, on a line of its own
IMPORT = re.compile(r'^import \{ ([\w$, ]+) \} from "\./(\w+\.js)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?function|const|class)", re.MULTILINE)
# in the order in which they apply
STYLES = ("view.css", "results.css")


@cache
def view_files() -> dict[str, str]:
    """Every file of the view by its name, as text."""
    folder = files(__package__).joinpath("view")
    return {p.name: p.read_text(encoding="utf-8") for p in sorted(folder.iterdir(), key=lambda p: p.name)}


@cache
def bundled_script(entry: str = "page_entry.js") -> str:
    """One script of a module and all that it imports, each once and behind what it needs itself."""
    done: dict[str, str] = {}

    def add(name: str) -> None:
        if name in done:
            return
        text = view_files()[name]
        # a circle ends here: functions of both are there when they are called
        done[name] = ""
        for _, needed in IMPORT.findall(text):
            add(needed)
        done.pop(name)
        done[name] = EXPORT.sub("", IMPORT.sub("", text))

    add(entry)
    return '"use strict";\n' + "\n".join(done.values())


@cache
def bundled_style() -> str:
    """One style of all."""
    return "\n".join(view_files()[name] for name in STYLES if name in view_files())
