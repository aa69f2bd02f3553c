"""Text from anywhere: every character is visible, and nothing acts on a terminal."""

from drawing import ACTING, NASTY

from lenscope import visible_text as visible
from lenscope.display.numbers import figure
from lenscope.visible_text import printable_token as visible


def test_tokens_are_made_visible():
    assert visible(" a") == "·a"
    assert visible("\n\t ") == "↵⇥ "
    assert visible("\x1b[31m") == "<1B>[31m"
    assert visible("extraordinary", 6) == "extra…"
    assert visible("日本語", 4) in ("日…", "日 …")
    assert figure(float("nan"), "kl") == "–"
    assert figure(-1, "rank") == "–"
    assert figure(0.123, "max_probability") == "12%"


def test_every_character_is_visible():
    shown = visible.printable(NASTY)
    assert not ACTING.search(shown)
    assert shown.isprintable()
    assert "a<1B>[31mb<1B>]0;t<07>c<9B>2Jd<202E>e<2066>f<200B>g↵h␍i<7F>j[red]k[/red]:smile:$x^2$<D83D>" in shown
    assert visible.printable("Größe, 日本語 and 👍🏽 stay") == "Größe, 日本語 and 👍🏽 stay"
    assert visible.printable("\u3164\u115f\u2800") == "<3164><115F><2800>"
    assert visible.printable_token("  x") == "··x"
