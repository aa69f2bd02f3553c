"""The page: it holds the data, nothing in them can leave its place, and nothing runs but the page's own script."""

import base64
import dataclasses
import hashlib
import html
import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
from browser import accessibility_faults, opened
from drawing import NASTY

import lenscope as ls
from lenscope.display.page import frame_height, page, script_json
from lenscope.display.payload import packed, unpacked_arrays
from lenscope.display.view_modules import bundled_script, bundled_style
from lenscope.errors import LenscopeError


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


def test_the_page_holds_the_data_and_nothing_escapes(lm, tmp_path):
    nasty = "</script><script>alert(1)</script> & \u2028"
    t = ls.Lens(lm).trajectory(nasty)
    t.to_html(tmp_path / "t.html")
    text = (tmp_path / "t.html").read_text()
    assert text.count("</script>") == 2
    assert "alert(1)</script>" not in text
    assert "{{" not in text
    result = data_of(text)["results"][0]
    assert result["text"] == nasty
    np.testing.assert_allclose(unpacked_arrays(result)["cross_entropy"], t.cross_entropy, rtol=1e-4)
    assert not re.search(r'(?:src|href)="?https?:', text), "the page must not load anything"


@pytest.fixture
def trajectory(lm):
    t = ls.Lens(lm, name=NASTY).trajectory("The cat sat")
    words = {i: NASTY + text for i, text in t.vocabulary.items()}
    return dataclasses.replace(t, vocabulary=words, text=NASTY, model=NASTY)


def test_the_page_cannot_be_left(trajectory):
    """Names are text within the page's data, where nothing is an element and every half of a pair is an escape."""
    text = page([dataclasses.replace(trajectory, text="</script><b>")], title=NASTY)
    assert text.count("</script>") == 2
    text.encode("utf-8")


def test_only_the_pages_own_script_and_style_run(trajectory):
    """The policy allows nothing but what has these digests, and no page has another script or style."""
    text = page([trajectory], title="{{script}}{{style}}")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none';")
    for tag, attributes in (("script", ' type="module"'), ("style", "")):
        (inside,) = re.findall(rf"<{tag}{attributes}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert data_of(text)["title"] == "{{script}}{{style}}"


def test_a_notebook_gets_the_page_in_a_frame_that_cannot_reach_it(trajectory):
    text = trajectory._repr_html_()
    place = r'width="100%" height="\d+" style="[^"]*" title="lenscope"'
    form = rf'<iframe sandbox="([^"]*)" {place} srcdoc="([^"]*)"></iframe>'
    match = re.fullmatch(form, text)
    assert match, text[:300]
    assert match[1] == "allow-scripts allow-downloads"
    assert html.unescape(match[2]) == page([trajectory], title=NASTY)
    text.encode("utf-8")


def test_a_notebooks_frame_is_as_high_as_its_rows_need():
    heights = [frame_height({"kind": "trajectory", "layers": range(n)}) for n in (2, 20, 31, 80)]
    assert heights == sorted(heights)
    assert heights[-1] == heights[-2] < 1200
    assert frame_height({"kind": "grid", "sources": range(11)}) < frame_height({"kind": "grid", "sources": range(31)})


def test_a_comparison_is_a_page_too(lm, tmp_path):
    both = ls.Lens(lm).compare("The cat", "A dog ran")
    both.to_html(tmp_path / "c.html")
    (result,) = data_of((tmp_path / "c.html").read_text())["results"]
    assert result["kind"] == "comparison"
    assert [result[side]["text"] for side in ("first", "second")] == ["The cat", "A dog ran"]
    np.testing.assert_allclose(unpacked_arrays(result)["js"], both.js, rtol=1e-4, atol=1e-30)
    assert "<iframe" in both._repr_html_()


def test_a_page_takes_results_and_not_files(trajectory):
    with pytest.raises(LenscopeError, match="page_data"):
        page([trajectory.to_json()], title="")


def test_a_page_of_a_long_prompt_is_small():
    """512 tokens × 31 layers with the five most probable tokens, of 8,000 (real text has some 1,000): below 1 MB."""
    rng = np.random.default_rng(0)
    L, P, k = 31, 512, 5
    ids = rng.integers(0, 8000, (L, P, k))
    words = {int(i): " token"[: 2 + i % 5] + str(i) for i in np.unique(ids)}
    measures = {n: rng.gamma(1.0, 2.0, (L, P)) for n in ("entropy", "kl", "max_probability", "cross_entropy")}
    log_probs = -np.sort(rng.gamma(2.0, 2.0, (L, P, k)))
    data = packed(
        {"kind": "trajectory", "vocabulary": {"ids": [*words], "texts": [*words.values()]}},
        {**measures, "rank": rng.zipf(1.5, (L, P)) % 49_152, "top_ids": ids, "top_log_probs": log_probs},
    )
    assert len(page([data], title="").encode()) < 1_000_000


# ---- in a browser ----

HOSTILE = [
    *("</script><script>window.hurt = 1</script>", "<img src=x onerror='window.hurt = 1'>", "</style>", "{{data}}"),
    *("\u202eevil\u2066", "\ud800", "\u200b", "\n\r\t ", "", "x" * 100_000),
]


@pytest.fixture
def written(lm, tmp_path):
    """Writes results onto a page and gives its address."""

    def write(*results, title="title"):
        path = tmp_path / "page.html"
        path.write_text(page(results, title=title), encoding="utf-8")
        return path.as_uri()

    return write


def synthetic(layers, positions, k=3, seed=0, **changes):
    """A trajectory of random numbers, its tokens three letters."""
    rng = np.random.default_rng(seed)
    shape = (layers, positions)
    ids = rng.integers(0, 200, (*shape, k))
    ids[..., 1:] = 200 + np.arange(k - 1)
    log_probs = np.log(np.full((*shape, k), 0.2) / np.arange(1, k + 1))
    prompt = tuple(int(i) for i in rng.integers(0, 200, positions))
    values = {
        "text": "a prompt",
        "ids": prompt,
        "model": "m",
        "lens": "l",
        "n_layers": layers - 1,
        "layers": tuple(range(layers)),
        "positions": tuple(range(positions)),
        "target": None,
        **{name: rng.gamma(2, 1, shape) for name in ("entropy", "kl", "cross_entropy")},
        "max_probability": np.full(shape, 0.2),
        "rank": rng.integers(0, 90, shape),
        "top_ids": ids,
        "top_log_probs": log_probs,
        "vocabulary": {i: f" {i:03d}" for i in range(300)},
    }
    return ls.Trajectory(**(values | changes))


def cell(page, layer, position):
    """The cell of a layer and a position, as the page says them."""
    row = page.locator(".row", has=page.locator(f".row-head:text-matches('^(layer)?{layer}$')")).first
    return row.locator(f"[role=gridcell][aria-colindex='{position + 2}']")


def test_a_cell_says_what_the_layer_predicts(browser, written, lm):
    t = ls.Lens(lm).trajectory("The cat sat", top_k=4)
    with opened(browser, written(t)) as page:
        page.wait_for_selector(".cell")
        assert page.locator(".cell").count() == len(t.layers) * len(t.positions)
        cell(page, t.layers[0], 1).hover()
        aside = page.locator("aside")
        aside.get_by_text(f"Layer {t.layers[0]}", exact=False).first.wait_for()
        assert page.locator(".top-token").count() == 4
        assert [int(i) for i in page.locator(".top-token").evaluate_all("all => all.map((x) => x.dataset.follow)")] == (
            t.top_ids[0, 1].tolist()
        )
        assert page.locator(".change").first.inner_text() == "–"
        cell(page, t.layers[1], 1).hover()
        aside.get_by_text(f"Layer {t.layers[1]}").first.wait_for()
        below = dict(zip(t.top_ids[0, 1].tolist(), np.exp(t.top_log_probs[0, 1]), strict=True))
        for n, token in enumerate(t.top_ids[1, 1].tolist()):
            change = page.locator(".change").nth(n).inner_text().replace("−", "-").replace("±", "")
            if token in below:
                assert float(change) == pytest.approx(100 * (np.exp(t.top_log_probs[1, 1, n]) - below[token]), abs=0.51)
            else:
                assert change == "new"


def test_the_keyboard_does_it_all(browser, written):
    t = synthetic(6, 9)
    with opened(browser, written(t)) as page:
        page.wait_for_selector(".cell")
        assert page.locator(".cell[tabindex='0']").count() == 1
        page.locator(".cell[tabindex='0']").focus()
        page.keyboard.press("Control+Home")
        held = "document.activeElement.getAttribute('aria-label')"
        assert "layer 5, position 0" in page.evaluate(held)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert "layer 4, position 1" in page.evaluate(held)
        page.keyboard.press("End")
        assert "layer 4, position 8" in page.evaluate(held)
        page.keyboard.press("Enter")
        assert page.locator(".cell[aria-selected='true']").count() == 1
        page.keyboard.press("p")
        assert page.locator(".chip").count() == 1
        assert page.locator(".cell.follow").count() >= 1
        page.keyboard.press("Escape")
        page.wait_for_selector(".cell[aria-selected='false']")
        page.get_by_label("Follow a token").fill("201")
        page.get_by_role("option").first.wait_for()
        page.keyboard.press("Enter")
        page.locator(".chip").nth(1).wait_for()
        assert page.locator("svg path.pin-2").count() == 2, "a probability and a rank"
        page.get_by_label("First layer").fill("2")
        page.get_by_label("Last layer").fill("3")
        page.get_by_label("Last position").fill("4")
        page.keyboard.press("Tab")
        assert page.locator(".row").count() == 2
        assert page.locator(".row").first.locator(".cell").count() == 5
        for _ in range(2):
            page.get_by_label("Stop following").first.click()
        assert page.locator(".chip").count() == 0


def test_no_more_than_five_tokens_are_followed(browser, written):
    with opened(browser, written(synthetic(4, 12, k=8))) as page:
        page.wait_for_selector(".top-token")
        for n in range(7):
            page.locator(".top-token").nth(n).click()
        assert page.locator(".chip").count() == 5
        assert page.get_by_label("Follow a token").is_disabled()


def test_a_drag_over_heads_chooses_positions_and_layers(browser, written):
    with opened(browser, written(synthetic(8, 8))) as page:
        page.wait_for_selector(".cell")
        heads = page.locator(".head-row:not(.next) .head-cell")
        heads.nth(2).hover()
        page.mouse.down()
        heads.nth(4).hover()
        assert page.locator(".head-row:not(.next) .chosen").count() == 3
        page.mouse.up()
        assert page.locator(".row").first.locator(".cell").count() == 3
        assert page.get_by_label("First position").input_value() == "2"
        page.locator(".row-head").nth(1).hover()
        page.mouse.down()
        page.locator(".row-head").nth(3).hover()
        page.mouse.up()
        assert page.locator(".row").count() == 3
        assert page.get_by_label("Last layer").input_value() == "6"
        for _ in range(2):
            page.get_by_role("button", name="all").first.click()
        assert page.locator(".row").count() == 8


def test_a_long_table_holds_only_what_is_seen(browser, written):
    t = synthetic(80, 1000)
    with opened(browser, written(t)) as page:
        page.wait_for_selector(".cell")
        assert page.locator(".cell").count() < 1500
        grid = page.get_by_role("grid")
        assert grid.get_attribute("aria-rowcount") == "82"
        assert grid.get_attribute("aria-colcount") == "1001"
        page.evaluate("document.querySelector('.scroller').scrollTo(64 * 500, 19 * 40)")
        page.wait_for_timeout(100)
        for layer, position in ((30, 505), (25, 508)):
            assert cell(page, layer, position).inner_text() == f"·{t.top_ids[layer, position, 0]:03d}"
        page.locator(".cell").first.page.keyboard.press("Tab")
        cell(page, 30, 505).click()
        page.keyboard.press("Control+End")
        assert "layer 0, position 999" in page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_early_layers_of_which_the_lens_knows_little_are_marked(browser, written):
    t = synthetic(
        5, 3, provenance={"held_out_kl": {"layers": [0, 1, 2, 3], "kl": [4.5, 2.75, 1.5, 0.5], "logit_lens": [9] * 4}}
    )
    with opened(browser, written(t)) as page:
        page.wait_for_selector(".cell")
        assert page.locator(".row-head.weak").count() == 2
        sentence = page.locator(".warning").first.inner_text()
        assert "layers 0–1" in sentence
        assert "2.8–4.5 nats" in sentence
        cell(page, 1, 1).hover()
        page.locator("aside .warning").get_by_text("2.75 nats").wait_for()
    plain = synthetic(5, 3, lens="logit lens")
    with opened(browser, written(plain)) as page:
        page.wait_for_selector(".cell")
        assert page.locator(".row-head.weak, .warning").count() == 0
    with opened(browser, written(t, plain)) as page:
        # the report of the one measures the other too
        page.wait_for_selector("#result-2 .cell")
        assert page.locator("#result-1 .row-head.weak").count() == 2
        assert page.locator("#result-2 .row-head.weak").count() == 4


def test_the_head_names_the_layers_that_are_there_and_no_others(browser, written, lm):
    for layers, words in (
        ((0, 1, 20), "layers 0–1, 20 of 30"),
        ((5,), "layer 5 of 30"),
        ((0, 1, 2), "layers 0–2 of 30"),
    ):
        t = dataclasses.replace(synthetic(len(layers), 2), layers=layers, n_layers=30)
        with opened(browser, written(t)) as page:
            page.wait_for_selector(".cell")
            assert f"· {words} ·" in page.locator(".about").first.inner_text()
    both = ls.Lens(lm).compare("The cat", "A dog ran", layers=[0, 2])
    with opened(browser, written(both)) as page:
        page.wait_for_selector(".cell")
        assert f"· layers 0, 2 of {lm.n_layers} ·" in page.locator(".about").first.inner_text()


def test_hostile_texts_do_nothing(browser, written):
    """Whatever tokens, prompts, names and titles are, they are text: nothing of them runs, turns or hides."""
    words = {i: HOSTILE[i % len(HOSTILE)] for i in range(300)}
    nasty = "".join(HOSTILE)
    t = synthetic(4, 30, vocabulary=words, text=nasty, model=nasty, lens=nasty, provenance={nasty: nasty}, target=4)
    both = ls.Comparison(
        texts=(nasty, nasty),
        lenses=(nasty, nasty),
        models=(nasty, nasty),
        layers=t.layers,
        positions=tuple((p, p) for p in t.positions),
        js=t.kl,
        total_variation=t.max_probability,
        kl=t.kl,
        kl_back=t.kl,
        first=t,
        second=t,
    )
    with opened(browser, written(t, both, title=nasty)) as page:
        page.wait_for_selector(".comparison .cell")
        cell(page, 2, 28).hover()
        page.locator(".top-token").first.click()
        page.get_by_label("Follow a token").first.fill("script")
        page.get_by_role("option").first.wait_for()
        assert page.evaluate("window.hurt") is None
        assert page.locator("main img, main script, main style").count() == 0
        assert page.evaluate("[...document.querySelectorAll('.token')].every((x) => x.textContent.length < 300)")
        shown = page.locator("main").inner_text()
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b]", shown)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_two_prompts_stand_side_by_side_and_move_together(browser, written, lm):
    both = ls.Lens(lm).compare("The cat sat on the mat and the dog", "A dog ran to the cat and the mat")
    with opened(browser, written(both), width=900) as page:
        page.wait_for_selector(".comparison .cell")
        grids = page.get_by_role("grid")
        assert grids.count() == 2
        page.evaluate("document.querySelector('.scroller').scrollTo(40, 0)")
        page.wait_for_timeout(100)
        assert page.evaluate("[...document.querySelectorAll('.scroller')].map((x) => x.scrollLeft)") == [40, 40]
        page.evaluate("document.querySelector('.scroller').scrollTo(0, 0)")
        page.locator(".cell[aria-colindex='3']").first.hover()
        page.wait_for_function("() => document.querySelectorAll('.cell[aria-selected]').length === 2")
        places = page.locator(".cell[aria-selected]").evaluate_all(
            "all => all.map((x) => x.getAttribute('aria-colindex'))"
        )
        assert places == ["3", "3"]
        assert f"{both.js[-1, 1]:.3g} nats" in page.locator("aside").inner_text()


def test_several_results_have_one_scale(browser, written):
    one, two = synthetic(4, 5), synthetic(4, 5, seed=1, kl=np.full((4, 5), 50.0))
    with opened(browser, written(one, two)) as page:
        page.wait_for_selector("#result-2 .cell")
        assert page.locator(".toolbar").count() == 1
        page.get_by_text("KL to final").click()
        assert set(
            page.locator("#result-2 .cell").evaluate_all("all => all.map((x) => /q\\d+/.exec(x.className)[0])")
        ) == {"q15"}
        steps = page.locator("#result-1 .cell").evaluate_all("all => all.map((x) => +/q(\\d+)/.exec(x.className)[1])")
        assert max(steps) < 8
        page.locator("#result-1 .cell").first.hover()
        page.locator("#result-1 .top-token").first.click()
        assert page.locator("#result-2 svg path.pin-1").count() >= 1


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False), (400, True)])
def test_a_screen_reader_has_no_serious_trouble(browser, written, lm, width, dark):
    one = ls.Lens(lm).trajectory("The cat sat on the mat")
    both = ls.Lens(lm).compare("The cat", "A dog ran")
    with opened(browser, written(one, both), width=width, dark=dark) as page:
        page.wait_for_selector(".comparison .cell")
        page.locator(".top-token").first.click()
        page.locator(".cell").nth(3).click()
        assert not accessibility_faults(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_printed_page_has_all_cells(browser, written):
    with opened(browser, written(synthetic(40, 60))) as page:
        page.wait_for_selector(".cell")
        seen = page.locator(".cell").count()
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.locator(".cell").count() == 40 * 60
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.locator(".cell").count() == seen < 40 * 60


def test_a_notebooks_frame_draws_its_page(browser, tmp_path, lm):
    """In a frame without an origin, from a text: what a notebook does with it."""
    path = tmp_path / "notebook.html"
    path.write_text("<!doctype html><link rel=icon href=data:,>" + ls.Lens(lm).trajectory("The cat")._repr_html_())
    with opened(browser, path.as_uri()) as page:
        page.frame_locator("iframe").locator(".cell").first.wait_for()


def test_a_notebooks_frame_shows_the_table_and_a_cells_details_at_once(browser, tmp_path, lm):
    """As wide as a column of text: neither the layers nor what a cell says has to be scrolled to."""
    t = ls.Lens(lm).trajectory("The cat sat")
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><link rel=icon href=data:,><div style='width: 800px'>{t._repr_html_()}</div>")
    with opened(browser, path.as_uri()) as page:
        frame = page.frame_locator("iframe")
        frame.locator(".cell").first.hover()
        whole, table, aside = (page.locator("iframe"), frame.locator(".scroller"), frame.locator("aside"))
        whole, table, aside = (part.bounding_box() for part in (whole, table, aside))
        assert aside["x"] >= table["x"] + table["width"]
        assert max(part["y"] + part["height"] for part in (table, aside)) <= whole["y"] + whole["height"]
        assert frame.locator(".scroller").evaluate("node => node.scrollHeight <= node.clientHeight + 1")


# a page with all hooks: what was called stands in `calls`
HOOKED = """
window.start = async (text, ranks) => {
  const result = { ...await unpackResult(JSON.parse(text)), key: "main" }, calls = window.calls = [];
  const hooks = {
    onCell: (r, cell) => calls.push(["cell", r.key, cell.layer, cell.position]),
    dragData: (r, cell) => ({ from: [cell.layer, cell.position] }),
    onDrop: (r, cell, dragged) => calls.push(["drop", cell.layer, cell.position, dragged]),
    rankCurves: async (r, ids) => { calls.push(["ranks", ids]); return JSON.parse(ranks); },
    cellActions: (r, cell) => [element("button", { type: "button" }, `Ask ${cell.layer} ${cell.position}`)],
    cone: { layer: 2, position: 3 },
    searchTokens: async (query) => [{ id: 7777, text: query + "!" }],
  };
  window.store = createStore({});
  window.drawn = drawResult(result, window.store, hooks);
  document.body.append(window.drawn.element);
};
window.grow = async (text) => window.drawn.update(await unpackResult(JSON.parse(text)));
"""


@pytest.fixture
def hooked(browser, tmp_path):
    """Opens a trajectory on a page that has all hooks; a ranks payload answers for tokens."""

    @contextmanager
    def open_page(t, ranks=None):
        path = tmp_path / "hooked.html"
        head = "<!doctype html><html lang=en><meta charset=utf-8><title>t</title><link rel=icon href=data:,>"
        script = f"<script type=module>{bundled_script()}{HOOKED}</script>"
        path.write_text(f"{head}<style>{bundled_style()}</style><body></body>{script}", encoding="utf-8")
        with opened(browser, path.as_uri()) as page:
            page.wait_for_function("() => Boolean(window.start)")
            page.evaluate("([text, ranks]) => start(text, ranks)", [script_json(t.page_data()), script_json(ranks)])
            page.wait_for_selector(".cell")
            yield page

    return open_page


def test_the_page_that_is_served_can_ask_and_drag(hooked):
    t = synthetic(6, 7)
    shape = (1, 6, 7)
    ranks = packed(
        {"kind": "ranks", "ids": [7777], "layers": list(t.layers), "positions": list(t.positions)},
        {"rank": np.arange(42).reshape(shape), "log_prob": np.full(shape, np.log(0.01))},
    )
    with hooked(t, ranks) as page:
        cell(page, 2, 1).click()
        assert page.evaluate("calls") == [["cell", "main", 2, 1]]
        assert page.get_by_role("button", name="Ask 2 1").count() == 1
        # what a state written at layer 2, position 3 can reach: its own column from there on, and later ones above
        assert page.locator(".cell.cone").count() == 4 + 3 * 3
        assert not accessibility_faults(page)
        page.get_by_label("Follow a token").fill("far")
        page.get_by_role("option").first.wait_for()
        page.keyboard.press("Enter")
        page.wait_for_function("() => calls.length === 2")
        assert page.evaluate("calls[1]") == ["ranks", [7777]]
        page.get_by_role("img", name="rank of far!: 1 at layer 0, 36 at layer 5").wait_for()
        cell(page, 1, 0).drag_to(cell(page, 4, 5))
        assert page.evaluate("calls[2]") == ["drop", 4, 5, {"from": [1, 0]}]
        cell(page, 3, 3).drag_to(page.locator(".head-row:not(.next) .head-cell").nth(6))
        assert page.evaluate("calls[3]") == ["drop", None, 6, {"from": [3, 3]}]
        cell(page, 5, 0).focus()
        page.keyboard.press("t")
        assert "Taken" in page.locator(".spoken").inner_text()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("d")
        assert page.evaluate("calls[4]") == ["drop", 5, 1, {"from": [5, 0]}]


def test_a_trajectory_grows_in_its_place(hooked):
    t, more = synthetic(5, 40), synthetic(5, 41)
    with hooked(t) as page:
        page.get_by_label("Follow a token").focus()
        page.evaluate("text => grow(text)", script_json(more.page_data()))
        assert page.get_by_role("grid").get_attribute("aria-colcount") == "42"
        assert page.get_by_label("Last position").input_value() == "40"
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Follow a token"
        assert cell(page, 4, 40).count() == 1, "who was at the end sees the new one"
        assert "Position 40" in page.locator("aside").inner_text()


def test_a_page_draws_what_little_there_is(browser, written):
    """One layer and one position; numbers that are not known; a single position of a longer prompt."""
    gaps = synthetic(3, 4)
    nothing = np.full((3, 4), np.nan)
    unknown = dataclasses.replace(
        gaps,
        **dict.fromkeys(("entropy", "kl", "max_probability", "cross_entropy"), nothing),
        rank=np.full((3, 4), -1),
        top_log_probs=np.full((3, 4, 3), np.nan),
    )
    late = dataclasses.replace(synthetic(3, 1), ids=tuple(range(9)), positions=(8,))
    for t, cells in ((synthetic(1, 1), 1), (unknown, 12), (late, 3)):
        with opened(browser, written(t)) as page:
            page.wait_for_selector(".cell")
            assert page.locator(".cell").count() == cells
            page.get_by_text("rank", exact=True).first.click()
            page.locator(".cell").first.click()
            page.locator(".cell").first.press("p")
            assert page.locator(".chip").count() == 1
            assert "NaN" not in page.locator("body").inner_text()
            assert "undefined" not in page.locator("body").inner_text()
