"""The page of the server in a real browser, against the real server and model: what a person does, by mouse and keys.

Knows: what stands on the page, by roles and names. Does not know: how requests look, how anything is computed.
"""

import re

import pytest
from browser import accessibility_faults, opened
from playwright.sync_api import expect
from view_server import serving

from lenscope.web.served import Served, ServedModel

expect.set_options(timeout=60_000)
PROMPT = "The Eiffel Tower is in the city of"
FRANCE, JAPAN = "The capital of France is the city of", "The capital of Japan is the city of"
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(1)</script>\u202egnp\u202c \u200b"


@pytest.fixture(scope="module")
def address(smollm2):
    """A server of the real model, at a free port of this machine."""
    with serving(Served([ServedModel(smollm2, "smollm2-135m")])) as server:
        yield server.address + "/"


@pytest.fixture
def page(browser, address):
    with opened(browser, address) as page:
        expect(prompt_field(page)).to_be_focused()  # the page has started
        yield page


def prompt_field(page):
    return page.get_by_role("textbox", name="Prompt", exact=True)


def result(page):
    return page.get_by_role("region", name="Result")


def cell(place, layer, position):
    """The cell of a layer and a position in what is drawn at a place; its row is shown."""
    row = place.locator(".rows .row").filter(has=place.page.locator(f".row-head:text-matches('^(layer)?{layer}$')"))
    return row.locator(f".cell[aria-colindex='{position + 2}']")


def heading(page, text):
    return result(page).get_by_role("heading", name=text, exact=True)


def run_prompt(page, text=PROMPT):
    """Types a prompt and waits for its trajectory."""
    prompt_field(page).fill(text)
    page.keyboard.press("Enter")
    expect(heading(page, text)).to_be_visible()


def ask_meaning(page, layer, position):
    cell(result(page), layer, position).click()
    page.get_by_role("tabpanel", name="Meaning").get_by_label("New tokens").fill("5")
    result(page).get_by_role("button", name="What does this state mean?").click()
    return page.get_by_role("table", name="What the model says")


def test_a_prompt_is_typed_and_every_layer_answers(page):
    page.keyboard.type(PROMPT)
    page.keyboard.press("Enter")
    expect(cell(result(page), 30, 8)).to_have_text("·Paris")
    details = page.get_by_role("complementary", name="Selected cell")
    cell(result(page), 29, 8).hover()
    expect(details).to_contain_text("Layer 29")
    expect(details).to_contain_text("·Paris")
    expect(page).to_have_title(f"{PROMPT} – lenscope")


def test_a_token_is_pinned_and_its_rank_followed_through_every_layer(page):
    run_prompt(page)
    cell(result(page), 30, 8).focus()
    page.keyboard.press("p")
    expect(result(page).get_by_role("list", name="Tokens that are followed")).to_contain_text("·Paris")
    curves = result(page).get_by_text("rank of the followed tokens")
    expect(curves).to_be_visible()
    expect(result(page).get_by_text("Gaps: not among")).to_have_count(0)  # the server knows the rank at every layer
    expect(page).to_have_url(re.compile("pins=.*Paris"))


def test_a_state_is_explained_beside_its_controls(page):
    run_prompt(page, "William Shakespeare")
    table = ask_meaning(page, 4, 1)
    page.get_by_label("Mark answers with").fill("playwright")
    expect(page.get_by_role("tabpanel", name="Meaning").get_by_role("status")).to_contain_text(
        "All answers are there; "
    )
    rows = table.get_by_role("row")
    expect(rows.filter(has_text="playwright").first).to_be_visible()
    expect(table.locator("mark").first).to_have_text("playwright")
    expect(rows.filter(has_text="without the state")).to_have_count(1)
    expect(table).to_contain_text("a random vector")


def test_a_contrast_is_set_by_keyboard_and_goes_with_the_link_and_the_copied_python(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run_prompt(page, "William Shakespeare")
    table = ask_meaning(page, 4, 1)
    panel = page.get_by_role("tabpanel", name="Meaning")
    expect(panel.get_by_text("All answers are there")).to_be_visible()
    plain = table.locator("tbody").inner_text()
    panel.get_by_label("New tokens").focus()
    page.keyboard.press("Tab")
    field = panel.get_by_label("Contrast with the prompt alone")
    expect(field).to_be_focused()  # with its text chosen
    page.keyboard.type("1.5")
    expect(panel.get_by_text("what is asked now differs")).to_be_visible()
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(table.locator("caption")).to_contain_text("with contrast 1.5")
    expect(panel.get_by_text("All answers are there")).to_be_visible()
    assert table.locator("tbody").inner_text() != plain
    page.get_by_text("Export", exact=True).click()
    page.get_by_role("button", name="Copy as Python").last.click()
    expect(page.get_by_text("is copied")).to_be_visible()
    assert "contrast=1.5" in page.evaluate("navigator.clipboard.readText()")
    page.reload()
    expect(field).to_have_value("1.5")
    expect(table.locator("caption")).to_contain_text("with contrast 1.5")


def test_the_grid_of_every_layer_comes_with_its_progress(page):
    run_prompt(page, "William Shakespeare")
    cell(result(page), 4, 1).click()
    page.get_by_role("tab", name="Every layer").click()
    panel = page.get_by_role("tabpanel", name="Every layer")
    panel.get_by_role("textbox", name="Source layers").fill("0-8/4")
    panel.get_by_role("textbox", name="Target layers").fill("0, 4, 8")
    panel.get_by_role("button", name="Run the grid").click()
    expect(panel.get_by_role("status").first).to_have_text("The grid is there.")
    expect(panel.locator(".result")).to_be_visible()
    panel.get_by_role("textbox", name="Target layers").fill("31-99")
    panel.get_by_role("button", name="Run the grid").click()
    expect(panel.get_by_role("status").first).to_contain_text("Type layers as numbers")


def test_a_cell_is_dragged_onto_a_token_of_another_prompt(page):
    run_prompt(page, FRANCE)
    cell(result(page), 12, 3).click()
    page.get_by_role("tab", name="Move it").click()
    panel = page.get_by_role("tabpanel", name="Move it")
    panel.get_by_label("Target prompt of the move").fill(JAPAN)
    page.keyboard.press("Enter")
    expect(cell(panel, 30, 7)).to_have_text("·Tokyo")
    cell(result(page), 12, 3).drag_to(cell(panel, 12, 3))
    expect(panel.get_by_role("heading", name="The run with the state")).to_be_visible()
    expect(cell(panel, 30, 7)).to_have_text("·Paris")
    expect(panel.locator(".cell.cone").first).to_be_attached()
    expect(panel.get_by_role("table").first).to_contain_text("·Tokyo")


def test_two_texts_are_written_side_by_side_when_it_is_steered(page):
    run_prompt(page, "The weather is cold")
    cell(result(page), 16, 3).click()
    page.get_by_role("tab", name="Steer").click()
    panel = page.get_by_role("tabpanel", name="Steer")
    panel.get_by_label("Strength", exact=True).fill("40")
    panel.get_by_label("New tokens").fill("4")
    panel.get_by_role("button", name="Steer", exact=True).click()
    expect(panel.get_by_role("region", name="Steered").locator(".answer")).not_to_be_empty()
    expect(panel.get_by_text("times as long as")).to_be_visible()
    expect(panel.get_by_role("region", name="Plain").locator(".answer")).not_to_be_empty()


def test_the_model_writes_and_every_token_has_its_column(page):
    prompt_field(page).fill(PROMPT)
    page.get_by_label("New tokens").first.fill("4")
    page.get_by_role("button", name="Write").click()
    expect(result(page).locator(".continued")).to_contain_text("Paris")
    expect(page.get_by_role("status").filter(has_text="Written in")).to_be_visible()
    expect(result(page)).to_contain_text("12 positions")
    result(page).get_by_role("button", name="Keep it in the prompt").click()
    expect(prompt_field(page)).to_have_value(re.compile(f"^{PROMPT} Paris"))


def test_a_chat_turn_is_edited_and_run_again(page):
    page.get_by_label("chat", exact=True).check()
    page.get_by_label("Turn 1, user").fill("What is the capital of France?")
    page.keyboard.press("Control+Enter")
    expect(result(page)).to_be_visible()
    expect(result(page).get_by_role("heading").first).to_contain_text("capital of France")
    page.get_by_label("Turn 1, user").fill("What is the capital of Japan?")
    expect(page.get_by_text("The inputs have changed")).to_be_visible()
    page.get_by_role("button", name="Run again").click()
    expect(result(page).get_by_role("heading").first).to_contain_text("capital of Japan")
    expect(page.get_by_text("The inputs have changed")).to_be_hidden()


def test_two_prompts_are_compared(page):
    page.get_by_label("Compare with").select_option("prompt")
    page.get_by_role("textbox", name="Second prompt").fill(JAPAN)
    prompt_field(page).fill(FRANCE)
    page.keyboard.press("Enter")
    expect(result(page).locator(".side")).to_have_count(2)
    expect(result(page)).to_contain_text("·Tokyo")
    expect(result(page)).to_contain_text("·Paris")


def test_a_shared_link_restores_the_view(page, browser, address):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run_prompt(page, "William Shakespeare")
    result(page).get_by_role("group", name="Colour by").get_by_text("entropy", exact=True).click()
    ask_meaning(page, 4, 1)
    expect(page.get_by_text("All answers are there")).to_be_visible()
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_text("The link to this view is copied.")).to_be_visible()
    link = page.evaluate("navigator.clipboard.readText()")
    with opened(browser, link) as other:
        expect(other.get_by_role("heading", name="State at layer 4, position 1")).to_be_visible()
        expect(other.get_by_text("All answers are there")).to_be_visible()
        expect(other.get_by_role("table", name="What the model says")).to_contain_text("playwright")
        expect(other.get_by_role("radio", name="entropy", exact=True)).to_be_checked()
        assert cell(result(other), 4, 1).get_attribute("aria-selected") == "true"


def test_earlier_runs_come_back_without_running_again(page):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/api/trajectory" in request.url else None)
    run_prompt(page)
    run_prompt(page, JAPAN)
    assert len(asked) == 2
    page.go_back()
    expect(heading(page, PROMPT)).to_be_visible()
    expect(prompt_field(page)).to_have_value(PROMPT)
    page.get_by_text("Earlier runs").click()
    page.get_by_role("button", name=re.compile(JAPAN)).click()
    expect(heading(page, JAPAN)).to_be_visible()
    assert len(asked) == 2
    page.reload()
    expect(heading(page, JAPAN)).to_be_visible()
    page.get_by_text("Earlier runs").click()
    expect(page.get_by_role("button", name=re.compile(PROMPT))).to_be_visible()


def test_exports_leave_the_page_and_open_offline(page, browser, tmp_path):
    run_prompt(page)

    def export(name):
        page.get_by_text("Export", exact=True).click()
        with page.expect_download() as coming:
            page.get_by_role("button", name=name).click()
        path = tmp_path / coming.value.suggested_filename
        coming.value.save_as(path)
        return path

    with opened(browser, export("HTML page").as_uri(), offline=True) as offline:
        expect(offline.get_by_role("heading", name=PROMPT).first).to_be_visible()
        expect(offline.locator(".cell", has_text="·Paris").first).to_be_attached()
    assert export("PNG of the view").read_bytes().startswith(b"\x89PNG")
    assert export("JSON").read_bytes().startswith(b"{")
    assert export("Parquet").read_bytes().startswith(b"PAR1")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_text("Export", exact=True).click()
    page.get_by_role("button", name="Copy as Python").click()
    expect(page.get_by_text("is copied")).to_be_visible()
    script = page.evaluate("navigator.clipboard.readText()")
    compile(script, "copied", "exec")
    assert PROMPT in script


def test_every_worked_example_opens(page):
    titles = page.get_by_role("region", name="Worked examples").locator("strong").all_inner_texts()
    assert len(titles) == 5
    for title in titles:
        page.get_by_role("button", name=title).click()
        expect(result(page)).to_be_visible()
        expect(page.locator(".status.failed")).to_have_count(0)
        page.go_back()
        expect(page.get_by_role("region", name="Worked examples")).to_be_visible()


def test_the_keyboard_alone_does_all_of_it(page):
    keys = page.keyboard
    keys.type(FRANCE)
    keys.press("Enter")
    expect(heading(page, FRANCE)).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    keys.press("g")  # to the grid: the last layer, the last token
    for key in ["ArrowDown"] * 18 + ["ArrowLeft"] * 4:
        keys.press(key)
    expect(cell(result(page), 12, 3)).to_be_focused()
    keys.press("p")
    expect(result(page).get_by_role("list", name="Tokens that are followed").get_by_role("listitem")).to_have_count(1)
    keys.press("Enter")
    expect(page.get_by_role("heading", name="State at layer 12, position 3")).to_be_visible()
    keys.press("t")
    page.get_by_role("tab", name="Meaning").focus()
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    panel = page.get_by_role("tabpanel", name="Move it")
    expect(panel).to_contain_text("Taken: the state at layer 12, position 3")
    keys.press("Tab")
    expect(panel.get_by_label("Target prompt of the move")).to_be_focused()
    keys.type(JAPAN)
    keys.press("Enter")
    expect(cell(panel, 30, 7)).to_have_text("·Tokyo")
    for _ in range(9):  # operation, button, then the grid's one stop
        keys.press("Tab")
        if page.evaluate("document.activeElement.matches('[role=gridcell]')"):
            break
    for key in ["ArrowDown"] * 18 + ["ArrowLeft"] * 4:
        keys.press(key)
    keys.press("d")
    expect(cell(panel, 30, 7)).to_have_text("·Paris")
    page.evaluate("document.activeElement.blur()")
    keys.press("w")
    expect(page.get_by_role("table", name="What the model says")).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    keys.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    keys.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_nothing_serious_stands_in_anyones_way(browser, address, width, dark):
    with opened(browser, address, width=width, dark=dark) as page:
        assert accessibility_faults(page) == []
        run_prompt(page, FRANCE)
        cell(result(page), 30, 7).click()
        for tab in ("Meaning", "Every layer", "Move it", "Steer"):
            page.get_by_role("tab", name=tab).click()
            assert accessibility_faults(page) == [], tab
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_text_does_nothing(browser, address):
    with opened(browser, address) as page:
        dialogs = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        prompt_field(page).fill(HOSTILE)
        page.keyboard.press("Enter")
        expect(result(page)).to_be_visible()
        result(page).locator(".rows .cell").last.click()
        assert page.locator("main img, main script").count() == 0
        assert dialogs == []


@pytest.mark.parametrize(
    ("fragment", "line"),
    [
        ("v=1&text=hello&ran=trajectory&cell=[1", "cannot be read (cell)"),
        ("v=1&text=hello&ran=trajectory&pins=[{}]&mode=song&nonsense=1", "cannot be read (pins, mode, nonsense)"),
        ("v=1&text=hello&ran=trajectory&contrast=-1", "cannot be read (contrast)"),
        ("v=99&text=hello", "another version"),
        ("%00%ff&v", "another version"),
    ],
)
def test_an_address_that_cannot_be_read_is_one_line(browser, address, fragment, line):
    with opened(browser, f"{address}#{fragment}") as page:
        expect(page.get_by_text(line)).to_be_visible()
        if "ran" in fragment:
            expect(heading(page, "hello")).to_be_visible()


def test_a_server_that_is_gone_and_what_it_refuses_are_said_in_one_line(browser, address):
    with opened(browser, address, allowed=("Failed to load resource",)) as page:
        prompt_field(page).fill("many words " * 2000)
        page.keyboard.press("Enter")
        expect(page.locator(".status.failed")).to_contain_text("at most 1024")
        page.context.set_offline(True)
        prompt_field(page).fill(PROMPT)
        page.keyboard.press("Enter")
        expect(page.locator(".status.failed")).to_contain_text("The server does not answer")
        page.context.set_offline(False)
        page.keyboard.press("Enter")
        expect(heading(page, PROMPT)).to_be_visible()


def test_a_state_comes_out_of_its_address_as_it_went_in(page):
    same = page.evaluate(
        """async () => {
          const { emptyState, readState, writeState } = await import("/app/url_state.js");
          const turns = [{ role: "user", content: "a\\nb" }, { role: "assistant", content: "" }];
          const state = { ...emptyState(), text: "a & b # c % + ü \\u202e\\n", turns,
            pins: [{ id: 3, text: " x" }], cell: [1, 2], strength: -2.5, contrast: 0.5,
            taken: { prompt: { text: "p" }, layer: 1, position: 0, token: "p" } };
          const back = readState(writeState(state));
          return back.complaint === "" && JSON.stringify(back.state) === JSON.stringify(state)
            && writeState(emptyState()) === "#v=1";
        }"""
    )
    assert same


def test_layers_are_typed_as_numbers_and_ranges(page):
    typed = page.evaluate(
        """async () => {
          const { typedLayers } = await import("/app/requests.js");
          return ["", "3", "0, 4-8, 20-30/5", "8-4", "31", "x", "1-3/0"].map((text) => typedLayers(text, 30));
        }"""
    )
    assert typed == [[], [3], [0, 4, 5, 6, 7, 8, 20, 25, 30], None, None, None, None]
