"""Text from anywhere: every character is visible, and nothing acts on a terminal."""

from drawing import ACTING, NASTY

from lenscope.visible_text import printable, printable_token


def test_tokens_are_made_visible():
    assert printable_token(" a") == "·a"
    assert printable_token("\n\t ") == "↵⇥ "
    assert printable_token("\x1b[31m") == "<1B>[31m"
    assert printable_token("extraordinary", 6) == "extra…"
    assert printable_token("日本語", 4) in ("日…", "日 …")


def test_every_character_is_visible():
    shown = printable(NASTY)
    assert not ACTING.search(shown)
    assert shown.isprintable()
    assert "a<1B>[31mb<1B>]0;t<07>c<9B>2Jd<202E>e<2066>f<200B>g↵h␍i<7F>j[red]k[/red]:smile:$x^2$<D83D>" in shown
    assert printable("Größe, 日本語 and 👍🏽 stay") == "Größe, 日本語 and 👍🏽 stay"
    assert printable("\u3164\u115f\u2800") == "<3164><115F><2800>"
    assert printable_token("  x") == "··x"
