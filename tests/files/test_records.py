"""Files of results: loaded equals saved in any order of rows; bit rot, impossible values and bombs are refused."""

import copy
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from every_result import KINDS, TABLES, every_result

import lenscope as ls
from lenscope.files.digests import FORMAT, sealed, unstamped
from lenscope.files.json_values import text_value, whole_array
from lenscope.files.kinds import KINDS as FILE_KINDS
from lenscope.files.kinds import PARQUET, refusal
from lenscope.files.parquet_tables import reordered, row_order
from lenscope.files.records import Record, load_record


@pytest.fixture
def made():
    return every_result()


@pytest.mark.parametrize("ending", ["json", "parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_loaded_equals_saved(made, tmp_path, kind, ending):
    result, path = made[kind], tmp_path / f"a.{ending}"
    if (kind, ending) == ("comparison", "parquet"):
        with pytest.raises(ls.LenscopeError, match=r"saved as \.json"):
            result.save(path)
        return
    result.save(path)
    loaded = ls.load_results(path)
    assert loaded == result
    assert loaded is not result
    assert loaded == result
    with pytest.raises(TypeError, match="unhashable"):
        hash(loaded)
    own = {"predicted": ls.load_grid, "generated": ls.load_grid, "effects": ls.interventions.load_effects}
    assert (
        own.get(kind, ls.lenses.load_evaluation if kind in ("evaluation", "transfer") else ls.load_results)(path)
        == result
    )
    assert type(result).from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize("kind", TABLES)
def test_rows_in_any_order_are_the_same_result(made, tmp_path, kind):
    path = tmp_path / "a.parquet"
    made[kind].save(path)
    table = pq.read_table(path)
    for order in (np.arange(len(table))[::-1], np.random.default_rng(0).permutation(len(table))):
        pq.write_table(table.take(pa.array(order)), path)
        assert ls.load_results(path) == made[kind]


def test_several_trajectories_sorted_by_another_tool(made, tmp_path):
    path = tmp_path / "a.parquet"
    lm = ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny-llama")
    many = [made["trajectory"], ls.Lens(lm).trajectory("x", layers=[0, 2])]
    ls.save(many, path)
    pq.write_table(pq.read_table(path).sort_by([("kl", "descending")]), path)
    assert ls.load_results(path) == many


def test_what_is_not_known_is_null(made, tmp_path):
    t = made["trajectory"]
    assert (t.rank[:, -1] == -1).all()
    assert {row[-1] for row in t.to_json()["measures"]["rank"]} == {None}
    t.save(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["rank"].null_count == table["cross_entropy"].null_count == len(t.layers)
    assert {"prompt", "model", "lens", "token", "top_token"} <= {*table.column_names}
    assert set(table["prompt"].to_pylist()) == {"The cat sat"}
    made["generated"].save(tmp_path / "b.parquet")
    cells = pq.read_table(tmp_path / "b.parquet")
    assert cells["source_layer"].null_count == cells["source_position"].null_count == len(cells)
    assert all(-1 not in ids for ids in cells["ids"].to_pylist())
    assert made["generated"].to_json()["sources"][0]["layer"] is None


@pytest.mark.parametrize("ending", ["json", "parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits_are_seen_or_change_nothing(made, tmp_path, kind, ending):
    if (kind, ending) == ("comparison", "parquet"):
        return
    path = tmp_path / f"a.{ending}"
    made[kind].save(path)
    content = path.read_bytes()
    seen = 0
    for n in range(3, len(content), max(1, len(content) // 150)):
        path.write_bytes(content[:n] + bytes([content[n] ^ (1 << n % 8)]) + content[n + 1 :])
        try:
            assert ls.load_results(path) == made[kind]
        except ls.LenscopeError as error:
            assert str(error).isprintable()  # noqa: PT017, either is right
            seen += 1
    assert seen > 50


def test_infinities_come_back(made, tmp_path):
    t = copy.deepcopy(made["trajectory"])
    t.kl[0, 0] = t.cross_entropy[0, 0] = np.inf
    t.top_log_probs[0, 0, 1:] = -np.inf
    for ending in ("json", "parquet"):
        t.save(tmp_path / f"a.{ending}")
        assert ls.load_results(tmp_path / f"a.{ending}") == t


def put(document, where, value):
    *path, last = where
    for step in path:
        document = document[step]
    document[last] = value


IMPOSSIBLE = {
    "trajectory": [
        (("measures", "max_probability", 0, 0), 1.5),
        (("measures", "max_probability", 0, 0), 0.001),
        (("measures", "entropy", 0, 0), -1.0),
        (("measures", "entropy", 0, 0), "high"),
        (("measures", "entropy", 0, 0), True),
        (("measures", "entropy", 0), [0.5]),
        (("measures", "kl"), [[0.5]]),
        (("measures", "rank", 0, 0), -2),
        (("measures", "rank", 0, 0), 0.5),
        (("measures", "rank", 0, -1), 3),
        (("measures", "rank", 0, 0), None),
        (("measures", "cross_entropy", 0, 0), -3.0),
        (("top", "ids", 0, 0, 0), 10**6),
        (("top", "ids", 0, 0, 0), -5),
        (("top", "ids", 0, 0), [1]),
        (("top", "log_probs", 0, 0, 0), 0.5),
        (("top", "log_probs", 0, 0), [-5.0, -1.0, -6.0]),
        (("layers", 1), 0),
        (("layers", 4), 9),
        (("layers", 0), True),
        (("layers", 0), 0.0),
        (("positions", 0), 5),
        (("positions", 0), -1),
        (("n_layers",), -1),
        (("prompt", "ids", 0), 10**9),
        (("prompt", "text"), 3),
        (("vocabulary",), {}),
        (("target",), {"id": 10**6, "token": "x"}),
        (("provenance",), []),
        (("version",), 3),
        (("version",), "1"),
    ],
    "predicted": [
        (("cells", "source", 0), 10**12),
        (("cells", "source", 0), -1),
        (("cells", "layer", 0), 5),
        (("cells", "ids", 0), [1, 2, 3, 4]),
        (("cells", "ids", 0, 0), 10**6),
        (("cells", "log_probs", 0, 0), 1.0),
        (("cells", "max_probability", 0), 2.0),
        (("cells", "log_prob:a", 0), 2.0),
        (("cells", "kl"), [0.0]),
        (("kind",), "generate"),
        (("texts",), []),
        (("targets", 0, "positions", 0), 99),
        (("targets", 0, "below"), "above"),
        (("sources", 0, "layer"), "x"),
        (("width",), 10**12),
        (("measures",), {"weight": "kg"}),
    ],
    "generated": [(("ended", 0), "tired"), (("ended",), []), (("cells", "ids", 0, 0), -1)],
    "effects": [
        (("cells", "run", 0), 10**12),
        (("cells", "run", 0), 1),
        (("cells", "layer", 0), 10**12),
        (("cells", "place", 0), 1),
        (("cells", "probability", 0), 1.5),
        (("cells", "effect", 0), -1.5),
        (("cells", "log_prob", 0), 0.5),
        (("totals", "clean", 0), 2.0),
        (("runs", 0, "places", 0), [99]),
        (("runs", 0, "places"), []),
        (("runs",), []),
    ],
    "evaluation": [
        (("values", "agreement", 0, 0, 0), 1.5),
        (("values", "kl", 0, 0, 0), -1.0),
        (("values", "kl", 0, 0), [0.5, 0.9, 0.1]),
        (("values", "kl", 0), []),
        (("lenses",), ["a", "a"]),
        (("baseline",), "another"),
        (("tokens",), -1),
        (("layers",), [2, 0]),
        (("bytes",), "many"),
    ],
    "transfer": [(("kl", 0, 0), -1.0), (("kl",), [[0.5]]), (("layers",), [0, 99]), (("rows",), 0)],
    "comparison": [
        (("measures", "js", 0, 0), 0.9),
        (("measures", "total_variation", 0, 0), 1.5),
        (("measures", "same_top", 0, 0), None),
        (("positions", 0), [1, 0]),
        (("layers",), [0, 3]),
        (("first",), None),
    ],
}


@pytest.mark.parametrize(
    ("kind", "where", "value"), [(k, *case) for k, cases in IMPOSSIBLE.items() for case in cases], ids=str
)
def test_values_that_nothing_could_have_written_are_refused(made, tmp_path, kind, where, value):
    """In a file of version 0.1.0, which has no digest, and in one whose digest somebody made anew."""
    document = json.loads(json.dumps(made[kind].to_json()))
    put(document, where, value)
    if where != ("version",):
        document["version"] = 1
    del document["sha256"]
    path = tmp_path / "a.json"
    for written in (document, sealed(document)):
        path.write_text(json.dumps(written))
        with pytest.raises(ls.LenscopeError) as told:
            ls.load_results(path)
        assert str(told.value).isprintable()
        assert len(str(told.value)) < 500


@pytest.mark.parametrize("kind", TABLES)
def test_missing_and_doubled_rows_and_columns_are_refused(made, tmp_path, kind):
    made[kind].save(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    doubled = pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)])
    number = next(f.name for f in table.schema if pa.types.is_floating(f.type))
    texts = table.set_column(table.column_names.index(number), number, pa.array(["1"] * len(table)))
    for n, bad in enumerate((table.slice(1), doubled, pa.concat_tables([table, table]), table.slice(0, 0),
                             table.drop_columns([number]), texts)):  # fmt: skip
        pq.write_table(bad.replace_schema_metadata(table.schema.metadata), tmp_path / f"{n}.parquet")
        with pytest.raises(ls.LenscopeError) as told:
            ls.load_results(tmp_path / f"{n}.parquet")
        assert str(told.value).isprintable()


def test_loaders_know_each_others_files(made, tmp_path):
    loaders = {
        "load_grid": ls.load_grid,
        "load_effects": ls.interventions.load_effects,
        "load_evaluation": ls.lenses.load_evaluation,
    }
    right = {"predicted": "load_grid", "generated": "load_grid", "effects": "load_effects",
             "evaluation": "load_evaluation", "transfer": "load_evaluation"}  # fmt: skip
    for kind in KINDS:
        for ending in ("json", "parquet") if kind in TABLES else ("json",):
            path = tmp_path / f"{kind}.{ending}"
            made[kind].save(path)
            for name, load in loaders.items():
                if right.get(kind) != name:
                    with pytest.raises(ls.LenscopeError, match=rf"{right.get(kind, 'load_results')}\(path\) reads it"):
                        load(path)
            with pytest.raises(ls.LenscopeError, match="is no basis but"):
                raise refusal(path, "basis", "")


def test_results_show_in_one_short_line(made):
    for result in made.values():
        assert len(repr(result)) < 200
        assert repr(result).isprintable()


@dataclass(frozen=True, eq=False)
class Counts(Record):
    """A result that nobody knows but this test."""

    name: str
    counts: np.ndarray

    file_kind = file_mark = "counts"

    def _head(self, lists):
        return {"kind": "counts", "version": FORMAT, "name": self.name}

    def _document(self, lists):
        return {**self._head(lists), "counts": lists(self.counts)}

    @classmethod
    def _from_document(cls, data):
        return cls(text_value(data["name"], "name"), whole_array(data["counts"], "counts"))

    def _rows(self):
        return pa.table({"place": np.arange(len(self.counts)), "count": self.counts})

    @classmethod
    def _from_columns(cls, head, columns):
        columns = reordered(columns, row_order(columns, {"place": np.arange(len(columns["place"]))}))
        return cls.from_json({**unstamped(head, columns), "counts": columns["count"]})


def test_a_new_class_of_results_needs_no_code_for_files(tmp_path, monkeypatch, made):
    monkeypatch.setitem(FILE_KINDS, "counts", ("table of counts", "load_counts(path)"))
    monkeypatch.setitem(PARQUET, "counts", "counts")
    counts = Counts("a", np.array([3, 1, 2]))
    for ending in ("json", "parquet"):
        path = tmp_path / f"a.{ending}"
        counts.save(path)
        assert load_record(path, (Counts,)) == counts
        with pytest.raises(ls.LenscopeError, match=r"is no grid but a table of counts; load_counts\(path\) reads it"):
            ls.load_grid(path)
    with pytest.raises(ls.LenscopeError, match="is no table of counts of format"):
        Counts.from_json(made["transfer"].to_json())
