"""Numbers as text: as many digits as there is room for, and a dash for what there is not."""

import pytest

from lenscope.display.numbers import figure, four_digits, round_number, signed_figure

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "measure", "shown"),
    [
        (NAN, "kl", "–"),
        (INFINITE, "kl", "–"),
        (-1, "rank", "–"),
        (9_999, "rank", "9999"),
        (12_345, "rank", "12k"),
        (0.123, "max_probability", "12%"),
        (1.26, "kl", "1.3"),
        (123.4, "kl", "123"),
    ],
)
def test_a_figure_has_four_characters(value, measure, shown):
    assert figure(value, measure) == shown
    assert len(shown) <= 4


@pytest.mark.parametrize(
    ("value", "share", "shown"),
    [(0.5, True, "50%"), (-0.0123, True, "-1.2%"), (0.0, True, "0%"), (-1.234, False, "-1.23"), (12.34, False, "12.3"),
     (NAN, True, "–")],
)  # fmt: skip
def test_a_signed_figure_has_six_characters(value, share, shown):
    assert signed_figure(value, share) == shown
    assert len(shown) <= 6


def test_four_digits():
    values = 1.23456, -1.23456, 12.3456, 123.456, 9.9999, NAN, INFINITE
    assert [four_digits(v) for v in values] == ["1.235", "-1.235", "12.35", "123", "10.00", "–", "∞"]


def test_round_numbers_have_two_digits_or_three_that_count():
    values = 1.234, 0.0, 0.01234, 0.000123, -12.345, NAN
    assert [round_number(v) for v in values] == ["1.23", "0.00", "0.012", "1.2e-04", "-12.35", "–"]


def test_what_rounds_to_nothing_has_no_sign():
    assert [signed_figure(v, True) for v in (-0.0001, -0.004, 0.0, -0.25)] == ["0.0%", "-0.4%", "0%", "-25%"]
    assert [signed_figure(v, False) for v in (-0.001, -0.5)] == ["0.00", "-0.50"]
