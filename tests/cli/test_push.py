"""The command that puts a lens on the hub."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that takes every folder; what it was given."""
    given = {}

    def upload(repo_id, folder_path, **_):
        given[repo_id] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}

    monkeypatch.setattr("lenscope.files.hub.reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.create_repo", lambda repo_id, exist_ok: f"https://hub/{repo_id}")
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    return given


def test_a_lens_goes_to_the_hub_with_a_card(run, lens, hub):
    assert run("push", str(lens), "me/lens") == (0, "", "lenscope: saved https://hub/me/lens\n")
    card = hub["me/lens"]["README.md"].decode()
    assert "# Tuned lens of" in card
    assert 'ls.load_lens("me/lens", lm)' in card
    row = json.loads(hub["me/lens"]["config.json"])["report"]["layers"][2]
    assert f"| 2 | {row['kl']:.3f} ({row['kl_95'][0]:.3f} to {row['kl_95'][1]:.3f}) |" in card
    status, out, _ = run("push", str(lens), "me/lens", "--json")
    assert (status, json.loads(out)) == (
        0,
        {"kind": "push", "repository": "me/lens", "address": "https://hub/me/lens"},
    )


def test_a_mistake_is_one_line_and_status_2(run, lens, tmp_path, hub):
    (tmp_path / "empty").mkdir()
    for folder, repository, message in (
        (lens, "lens", "lens: is no name of a repository; give OWNER/NAME"),
        (lens, "a/b/c", "is no name of a repository"),
        (tmp_path / "none", "me/lens", "no such folder"),
        (tmp_path / "empty", "me/lens", "is no mapping that lenscope saved"),
    ):
        status, out, err = run("push", str(folder), repository)
        assert (status, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
    assert not hub


def test_without_the_hub_it_is_one_line_and_status_2(run, lens):
    status, out, err = run("push", str(lens), "me/lens")  # tests run with HF_HUB_OFFLINE
    assert (status, out) == (2, "")
    assert err == "lenscope: me/lens: the hub cannot be reached; push it once while online\n"
