"""What sums over text say: the bias of distributions that float32 loses, intervals that cover."""

import numpy as np
import pytest
import torch

from lenscope.lenses import summed_measures
from lenscope.lenses.text_sums import BINS
from lenscope.measures import streamed as reduction


class Loud:
    """A readout in float32 whose probabilities fall below the smallest float."""

    description, splits = "loud", True

    def __init__(self, head):
        self.head = head

    def prepare(self, h):
        return h

    def columns(self, x, start, stop):
        return x @ self.head[:, start:stop]

    def tokens(self, x, ids):
        return (x * self.head[:, ids].T).sum(-1)


def test_mean_distributions_keep_what_float32_loses(monkeypatch):
    monkeypatch.setattr(reduction, "PIECE_BYTES", 1)
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(8, 600, generator=draw)
    head[:, 0] = 40 * torch.ones(8)
    quiet = torch.randn(5, 8, generator=draw)
    loud = 1 + 0.01 * torch.randn(5, 8, generator=draw)
    read = list(reduction.average(Loud(head), 600, quiet, [loud, quiet], torch.zeros(5, dtype=torch.long)))
    sums = [mean for _, mean in read]
    exact = [torch.softmax(h.double() @ head.double(), -1).sum(0) for h in (quiet, loud, quiet)]
    assert float(exact[1].min()) < 1e-100
    for mean, expected in zip(sums, exact, strict=True):
        assert mean.dtype == torch.float64
        assert torch.allclose(mean.log(), expected.log(), atol=2e-4)
    bias, none = summed_measures._bias([torch.stack(sums)])
    assert not none.size
    twice, without = summed_measures._bias([torch.stack(sums), 2 * torch.stack(sums)])
    assert np.allclose(without, [bias, bias], rtol=1e-9)
    assert np.allclose(twice, bias, rtol=1e-9)
    p, q = exact[0] / 5, exact[1] / 5
    assert bias[0] == 0
    assert bias[1] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert bias[1] > 100
    assert bias[2] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("units", "least"), [(8, 0.88), (60, 0.915)])
def test_intervals_cover(units, least, monkeypatch):
    """Simulated text: predictions of one document are alike, documents differ in length; the truth is known."""
    monkeypatch.setattr(summed_measures, "RESAMPLES", 300)
    draw = np.random.default_rng(0)
    tries = 400
    hits = {"cross_entropy": 0, "difference": 0, "calibration": 0}
    widths = []
    for _ in range(tries):
        counts = draw.integers(5, 60, units).astype(float)
        document = draw.normal(0, 1, units)
        sums = np.zeros((units, 2, 4 + BINS))
        # two lenses that share the document's difficulty: 3 nats and 3.2
        for cell, mean in enumerate((3.0, 3.2)):
            noise = draw.normal(0, 0.5 / np.sqrt(counts))
            sums[:, cell, 0] = counts * (mean + document + noise)
        # five bins in use, right 10 points more often than they say
        sums[:, :, 4:9] = ((draw.binomial(counts[:, None].astype(int), 0.6) - 0.5 * counts[:, None]) / 5)[..., None]
        size = counts * 4
        value = summed_measures._measures(sums.sum(0), counts.sum(), size.sum())
        drawn = summed_measures._resampled(sums, counts, size, int(draw.integers(1 << 30)))
        _, low, high = summed_measures._with_interval(value["cross_entropy"], drawn["cross_entropy"], units)[0]
        hits["cross_entropy"] += low <= 3 <= high
        apart = drawn["cross_entropy"] - drawn["cross_entropy"][:, :1]
        _, low, high = summed_measures._with_interval(value["cross_entropy"] - value["cross_entropy"][0], apart, units)[
            1
        ]
        hits["difference"] += low <= 0.2 <= high
        widths.append(high - low)
        _, low, high = summed_measures._with_interval(value["calibration"], drawn["calibration"], units)[0]
        hits["calibration"] += low <= 0.1 <= high
    # paired: the documents' own differences, of 1 nat, do not count
    assert np.median(widths) < 0.6 / np.sqrt(units)
    for name, n in hits.items():
        assert least <= n / tries <= 0.985, (name, n / tries)
