"""The palette: text reads on every colour, and the colour-blind tell lines apart."""

import itertools
import re

import numpy as np
import pytest

from lenscope.display import style
from lenscope.display.view_modules import view_files

# how people who lack one kind of cone see linear light (Machado et al. 2009, severity 1)
SEEN_AS = {
    "normal": np.eye(3),
    "protan": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deutan": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritan": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
LMS = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
LAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])


def oklab(colour, seen):
    channels = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return LAB @ np.cbrt(LMS @ np.clip(seen @ linear, 0, 1))


@pytest.mark.parametrize("theme", style.THEMES)
def test_text_reads_on_every_colour(theme):
    palette = style.PALETTES[theme]
    for ground in (palette.paper, palette.wash):
        for text in (palette.ink, palette.faint, palette.accent):
            assert style.contrast(text, ground) >= 4.5, (text, ground)
    assert min(style.contrast(pin, palette.paper) for pin in palette.pins) >= 4.5
    assert min(style.contrast(style.text_on(step), step) for step in palette.ramp) >= 4.5


@pytest.mark.parametrize("theme", style.THEMES)
@pytest.mark.parametrize("eyes", SEEN_AS)
def test_lines_stay_apart_for_the_colour_blind(theme, eyes):
    places = [oklab(pin, SEEN_AS[eyes]) for pin in style.PALETTES[theme].pins]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2)) > 0.06


@pytest.mark.parametrize("theme", style.THEMES)
@pytest.mark.parametrize("eyes", SEEN_AS)
def test_a_ramp_goes_in_even_steps_of_lightness(theme, eyes):
    lightness = [oklab(step, SEEN_AS[eyes])[0] for step in style.PALETTES[theme].ramp]
    steps = np.diff(lightness) * (1 if theme == "dark" else -1)
    assert steps.min() > 0
    assert steps.max() < 3 * np.median(steps)


def test_a_palette_names_its_colours_for_a_style_sheet():
    properties = style.PALETTES["light"].properties()
    assert len(properties) == 6 + 5 + 16
    assert properties["--pin-1"] == "#1553a2"
    assert properties["--q15"] == "#2c4775"


def test_the_page_has_the_same_colours():
    text = view_files()["view.css"]
    themes = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    for theme, block in zip(style.THEMES, themes, strict=True):
        colours = {name: long_form(colour) for name, colour in re.findall(r"(--[\w-]+): (#\w+)", block)}
        assert style.PALETTES[theme].properties().items() <= colours.items()
        for n in range(len(style.PALETTES[theme].ramp)):
            assert style.contrast(colours[f"--q{n}"], colours[f"--on-q{n}"]) >= 4.5


def long_form(colour):
    return colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
