"""The console of the command line: what it prints acts on nothing, and a log shows how far long work is."""

import io

import pytest
from drawing import ACTING, NASTY, drawn

from lenscope.cli import terminal
from lenscope.cli.terminal import Screen, item_bar, noted_progress_bar, progress_bar, rate_line


def test_the_command_line_s_own_console_is_the_last_guard(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    Screen().print(NASTY, soft_wrap=True)
    assert not ACTING.search(out.getvalue())
    assert "[red]k[/red]:smile:" in out.getvalue()
    progress = item_bar(3, NASTY)
    assert not ACTING.search(drawn(progress.get_renderable()))


class Log:
    """What stderr, a file here, has so far; and a clock that stands still until `now` is set."""

    def __init__(self, capture):
        self.capture, self.now = capture, 1000.0

    def lines(self):
        return self.capture.readouterr().err.splitlines()


@pytest.fixture
def log(capfd, monkeypatch):
    one = Log(capfd)
    monkeypatch.setattr(terminal, "clock", lambda: one.now)
    return one


def test_a_log_has_a_line_when_a_minute_has_passed_since_the_last_one(log):
    with progress_bar("rows") as advance:
        for seconds, done in ((0, 0), (59, 80), (60, 120), (119, 130), (121, 1300), (180, 1301), (181, 1302)):
            log.now = 1000 + seconds
            advance(done, 4000)
    assert log.lines() == [f"lenscope: {done} of 4,000 rows" for done in ("120", "1,300", "1,302")]


def test_work_of_less_than_a_minute_leaves_a_log_empty(log):
    for seconds in (0, 50, 100):
        log.now = 1000 + seconds
        with progress_bar("rows") as advance:
            advance(1, 4)
            log.now = 1000 + seconds + 45
            advance(4, 4)
    assert log.lines() == []


def test_every_bar_of_the_command_line_writes_such_lines(log):
    with item_bar(3, "prompts") as bar:
        log.now = 1061
        bar.advance(bar.task_ids[0])
    with item_bar(1, "prompts") as bar:
        log.now = 1122
        bar.advance(bar.task_ids[0])
    with noted_progress_bar("tokens") as (advance, note):
        note("halves agree")
        log.now = 1200
        advance(5, 10)
    with progress_bar("samples") as advance:
        log.now = 1300
        advance(7, 0)
    with rate_line("lines") as count:
        log.now = 1400
        count(1)
    lines = log.lines()
    assert lines[:3] == [
        "lenscope: 1 of 3 prompts",
        "lenscope: 5 of 10 tokens, halves agree",
        "lenscope: 7 samples",
    ]
    assert lines[3].startswith("lenscope: 1 lines, ")
    assert len(lines) == 4


def test_only_the_first_of_several_processes_writes_lines(log, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        with progress_bar("rows") as advance:
            log.now += 60
            advance(int(rank) + 3, 9)
    assert log.lines() == ["lenscope: 3 of 9 rows"]


def test_what_a_program_collects_in_memory_has_no_such_lines(log, monkeypatch):
    collected = io.StringIO()
    monkeypatch.setattr("sys.stderr", collected)
    with progress_bar("rows") as advance:
        log.now = 2000
        advance(3, 9)
    assert collected.getvalue() == ""
