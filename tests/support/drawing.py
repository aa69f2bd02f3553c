"""Tables as a terminal shows them, and a text that would act on one."""

import io
import re

from rich.console import Console

# colours, a title, the cursor, an 8-bit escape, text turned around, hidden, on new lines; markup of rich and of figures
NASTY = "a\x1b[31mb\x1b]0;t\x07c\x9b2Jd\u202ee\u2066f\u200bg\nh\ri\x7fj[red]k[/red]:smile:$x^2$\ud83d\u2028\U000e0041"
ACTING = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e0fff]"
)


def drawn(shown, width=200, **how):
    console = Console(file=io.StringIO(), width=width, **how)
    console.print(shown)
    return console.file.getvalue()
