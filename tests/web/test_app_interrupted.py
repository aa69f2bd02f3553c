"""The page of the server where people do not wait: they type on, go back, stop, and look at the second of two prompts.

Knows: what stands on the page, by roles and names. Does not know: how anything is computed.
"""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from browser import opened
from playwright.sync_api import expect

expect.set_options(timeout=60_000)
FIRST, SECOND = "the cat sat on", "a dog ran to the big house"


@pytest.fixture
def page(browser, view):
    with opened(browser, view.address + "/") as page:
        expect(prompt_field(page)).to_be_focused()
        yield page


def prompt_field(page):
    return page.get_by_role("textbox", name="Prompt", exact=True)


def result(page):
    return page.get_by_role("region", name="Result")


def run_prompt(page, text):
    prompt_field(page).fill(text)
    page.keyboard.press("Enter")
    expect(result(page).get_by_role("heading", name=text, exact=True)).to_be_visible()


def state_in_link(page):
    """The fields of the address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).fragment).items()}


@pytest.fixture
def slow_answers(page):
    """Answers that come when they are let go: a function that does so, for the answers of one endpoint."""
    waiting = []

    def hold(endpoint):
        page.route(f"**/api/{endpoint}", lambda route: waiting.append(route))

        def let_go():
            while waiting:
                waiting.pop().continue_()

        return let_go

    return hold


def test_what_is_typed_on_while_it_runs_is_not_what_the_link_says(page, slow_answers):
    let_go = slow_answers("trajectory")
    prompt_field(page).fill(FIRST)
    page.keyboard.press("Enter")
    prompt_field(page).fill(SECOND)
    let_go()
    expect(result(page).get_by_role("heading", name=FIRST, exact=True)).to_be_visible()
    expect(page.get_by_text("The inputs have changed")).to_be_visible()
    assert state_in_link(page)["text"] == FIRST
    page.get_by_text("Earlier runs").click()
    page.get_by_role("button", name=re.compile(FIRST)).click()
    expect(prompt_field(page)).to_have_value(FIRST)
    expect(page.get_by_text("The inputs have changed")).to_be_hidden()


def test_going_back_after_writing_gives_what_was_there_before(page):
    run_prompt(page, FIRST)
    prompt_field(page).fill(SECOND)
    page.get_by_label("New tokens").first.fill("12")
    page.get_by_role("button", name="Write").click()
    expect(page.get_by_role("status").filter(has_text="Written in")).to_be_visible()
    page.go_back()
    expect(result(page).get_by_role("heading", name=FIRST, exact=True)).to_be_visible()
    expect(prompt_field(page)).to_have_value(FIRST)


def test_going_back_while_it_runs_ends_that(page, slow_answers):
    run_prompt(page, FIRST)
    run_prompt(page, SECOND)
    let_go = slow_answers("trajectory")
    prompt_field(page).fill("something else")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop").first).to_be_visible()
    page.go_back()
    expect(result(page).get_by_role("heading", name=FIRST, exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Stop").first).to_be_hidden()
    let_go()
    page.wait_for_timeout(300)
    expect(result(page).get_by_role("heading", name=FIRST, exact=True)).to_be_visible()
    assert state_in_link(page)["text"] == FIRST


def test_a_state_of_the_second_prompt_is_that_of_the_link_and_the_keys(page, browser):
    asked = []

    def listen(tab):
        tab.on("request", lambda one: asked.append(one.post_data_json) if "/api/explanation" in one.url else None)

    listen(page)
    page.get_by_label("Compare with").select_option("prompt")
    page.get_by_role("textbox", name="Second prompt").fill(SECOND)
    prompt_field(page).fill(FIRST)
    page.keyboard.press("Enter")
    result(page).locator(".side").nth(1).locator(".rows .cell").last.click()
    meaning = page.get_by_role("tabpanel", name="Meaning")
    meaning.get_by_label("Target prompt", exact=True).select_option("own")
    meaning.get_by_label("Own target prompt").fill("x is x")
    heading = page.get_by_role("heading", name=re.compile("^State at layer"))
    chosen = heading.inner_text()
    page.get_by_role("tab", name="Meaning").focus()
    page.keyboard.press("w")
    expect(page.get_by_text("All answers are there")).to_be_visible()
    expect(heading).to_have_text(chosen)
    expect(page).to_have_url(re.compile("asked=meaning"))
    with opened(browser, page.url.split("#")[0]) as other:
        listen(other)
        other.goto(page.url)
        other.reload()
        expect(other.get_by_text("All answers are there")).to_be_visible()
        expect(other.get_by_role("heading", name=re.compile("^State at layer"))).to_have_text(chosen)
    result(page).get_by_role("button", name="What does this state mean?").nth(1).click()
    expect(heading).to_have_text(chosen)
    # the tab that is loaded again may have asked before, and asks again
    assert len(asked) in (3, 4)
    assert all(one["prompt"] == asked[0]["prompt"] and one["position"] == asked[0]["position"] for one in asked)


def test_answers_to_another_question_are_marked_and_not_copied_as_this_one(page, slow_answers):
    old = "These are answers to what was asked before"
    run_prompt(page, FIRST)
    result(page).locator(".rows .cell").last.click()
    page.get_by_role("tab", name="Steer").click()
    panel = page.get_by_role("tabpanel", name="Steer")
    panel.get_by_label("New tokens").fill("4")
    panel.get_by_role("button", name="Steer", exact=True).click()
    expect(panel.get_by_text(re.compile("Both texts are"))).to_be_visible()
    expect(panel.get_by_text(old)).to_be_hidden()
    panel.get_by_label("Strength", exact=True).fill("7")
    expect(panel.get_by_text(old)).to_be_visible()
    panel.get_by_label("Strength", exact=True).fill("1")
    expect(panel.get_by_text(old)).to_be_hidden()
    result(page).locator(".rows .cell").first.click()
    expect(panel.get_by_text(old)).to_be_visible()
    slow_answers("steering")
    panel.get_by_role("button", name="Steer", exact=True).click()
    expect(panel.get_by_text(old)).to_be_hidden()
    panel.get_by_role("button", name="Stop").click()
    page.get_by_text("Export", exact=True).click()
    expect(page.get_by_role("list", name="The result")).to_be_visible()
    expect(page.get_by_role("list", name="The two texts")).to_have_count(0)
