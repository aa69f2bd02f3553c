"""The console of the command line: what it prints acts on nothing."""

import io

from drawing import ACTING, NASTY, drawn

from lenscope.cli.terminal import Screen, item_bar


def test_the_command_line_s_own_console_is_the_last_guard(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    Screen().print(NASTY, soft_wrap=True)
    assert not ACTING.search(out.getvalue())
    assert "[red]k[/red]:smile:" in out.getvalue()
    progress = item_bar(3, NASTY)
    assert not ACTING.search(drawn(progress.get_renderable()))
