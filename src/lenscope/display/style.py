"""The look of what lenscope draws: one palette for figures and pages, light and dark.

Knows: which colour stands for what, which colours the colour-blind tell apart, what text reads on a colour.
Does not know: what is drawn, by which library.
"""

from dataclasses import dataclass
from typing import Literal

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")


@dataclass(frozen=True)
class Palette:
    """The colours of one theme, each as #rrggbb.

    `paper` is the ground, `ink` the text, `faint` text that stands back, `rule` lines between things, `wash` a ground
    that stands out a little, `accent` what is chosen. `pins` are five colours that stay apart for the colour-blind, and
    that text may have on paper. `ramp` goes in even steps of lightness from nothing to much.
    """

    paper: str
    ink: str
    faint: str
    rule: str
    wash: str
    accent: str
    pins: tuple[str, ...]
    ramp: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The colours of a chart's lines, in order."""
        return (*self.pins, self.ink, self.faint, self.accent)

    def properties(self) -> dict[str, str]:
        """The palette as the custom properties of a style sheet, by name."""
        names = ("paper", "ink", "faint", "rule", "wash", "accent")
        return {
            **{f"--{name}": getattr(self, name) for name in names},
            **{f"--pin-{n}": colour for n, colour in enumerate(self.pins, 1)},
            **{f"--q{n}": colour for n, colour in enumerate(self.ramp)},
        }


# Ramps are even steps of OKLab lightness, so that a step looks like a step wherever it is, and in print. Pins were
# chosen for the least distance between any two of them, as they are and as three kinds of colour-blind people see them.
PALETTES: dict[Theme, Palette] = {
    "light": Palette(
        paper="#ffffff",
        ink="#14181d",
        faint="#5d6670",
        rule="#dfe3e7",
        wash="#f4f6f7",
        accent="#c2410c",
        pins=("#1553a2", "#862a00", "#10806f", "#6a3060", "#8f6900"),
        ramp=(
            *("#faf9ef", "#eaeedc", "#d6e4cc", "#c1dbc0", "#aad1b7", "#92c7b0", "#7abdac", "#62b2a9"),
            *("#4ca6a7", "#3999a5", "#2a8ca1", "#237e9c", "#227095", "#25628c", "#295482", "#2c4775"),
        ),
    ),
    "dark": Palette(
        paper="#14171b",
        ink="#e6e9ec",
        faint="#98a2ac",
        rule="#2c3238",
        wash="#1d2126",
        accent="#ff9a5c",
        pins=("#5fb2ff", "#f07a2a", "#6ee8cf", "#cc86b0", "#ffd060"),
        ramp=(
            *("#21242b", "#252f3a", "#283a49", "#284757", "#275464", "#24616e", "#236f76", "#277d7c"),
            *("#328b80", "#429882", "#57a483", "#6eb084", "#86bb85", "#9fc588", "#b8ce8e", "#d0d897"),
        ),
    ),
}


def luminance(colour: str) -> float:
    """The relative luminance of a colour #rrggbb (WCAG 2), 0–1."""
    red, green, blue = (_linear_light(int(colour[n : n + 2], 16) / 255) for n in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """The contrast of two colours (WCAG 2), 1–21; text needs 4.5."""
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def blended(colour: str, other: str, share: float) -> str:
    """A colour #rrggbb that a share 0–1 of another one covers."""
    pairs = [(int(colour[n : n + 2], 16), int(other[n : n + 2], 16)) for n in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def text_on(colour: str) -> str:
    """Black or white, whichever reads better on a colour."""
    return max("#000000", "#ffffff", key=lambda text: contrast(text, colour))


def _linear_light(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
