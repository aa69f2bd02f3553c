"""The laws tried on one given model."""

import lenscope as ls


def test_check_reports_what_holds(lm):
    report = ls.check(lm)
    assert report.holds
    names = [f.name for f in report.findings]
    assert "readout" in names
    assert report.to_json()["holds"] is True
