"""Relations, chains and entities: files, prompts, and which facts a model goes on to say, against the model itself."""

import gzip
import json
import re

import numpy as np
import pytest
import torch

from lenscope import LenscopeError
from lenscope.tasks import builtin_facts as facts
from lenscope.tasks import model_knowledge, relation_files, relations
from lenscope.tasks.relations import Chain, Fact, Relation
from lenscope.tasks.text_match import compared_words, mentions

CITY = Relation(
    "city",
    "The capital of {} is",
    "The capital of x",
    tuple(
        Fact(a, (b,)) for a, b in (("France", "Paris"), ("Spain", "Madrid"), ("Peru", "Lima"), ("Chile", "Santiago"))
    ),
)


def lines(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def greedy(lm, prompt, count):
    """transformers' own model, a token at a time, without a cache."""
    ids = list(lm.tokenizer(prompt)["input_ids"])
    start = len(ids)
    for _ in range(count):
        ids.append(int(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == lm.tokenizer.eos_token_id:
            break
    return lm.tokenizer.decode(ids[start:])


# -- built in


def test_the_built_in_relations_are_whole():
    made = relations.builtin_relations()
    assert len(made) >= 6
    assert len({r.name for r in made}) == len(made)
    for relation in made:
        subjects = [f.subject for f in relation.facts]
        assert len(subjects) >= 20
        assert len(set(subjects)) == len(subjects), relation.name
        for fact in relation.facts:
            assert all("_" not in part and part.strip() == part for part in (fact.subject, *fact.answers))
            assert len(fact.texts) == 5
            assert all(text.endswith(fact.subject) for text in fact.texts)
            if not mentions(fact.subject, fact.answers):
                assert not any(mentions(text, fact.answers) for text in fact.texts), fact


def test_the_built_in_facts_agree_with_each_other():
    by_name = {r.name: {f.subject: f.answers for f in r.facts} for r in relations.builtin_relations()}
    assert by_name["capital"]["France"] == ("Paris",)
    assert by_name["language"]["Brazil"] == ("Portuguese",)
    assert by_name["language"]["China"] == ("Chinese", "Mandarin")
    assert by_name["currency"]["Japan"] == ("yen",)
    assert by_name["landmark"]["the Valley of the Kings"] == ("Egypt",)
    assert by_name["opposite"]["hot"] == ("cold",)
    assert by_name["young"]["dog"] == ("puppy", "pup")
    assert by_name["color"]["ash"] == ("gray", "grey")


def test_built_in_chains_go_by_way_of_their_bridge():
    by_name = {r.name: {f.subject: f.answers for f in r.facts} for r in relations.builtin_relations()}
    made = relations.builtin_chains()
    assert len(made) > 100
    for chain in made:
        one, two = chain.name.split(" → ")
        assert by_name[one][chain.subject][0] == chain.bridge
        assert by_name[two][chain.bridge][0] == chain.answer
        assert not mentions(f"{chain.subject} {chain.bridge}", chain.answer)
    lyon = next(c for c in made if c.subject == "Lyon" and c.name == "city → language")
    assert lyon.described == "the country that has the city of Lyon"
    assert lyon.questions == (
        "Lyon is a city in the country of",
        "People in France speak",
        "People in the country that has the city of Lyon speak",
    )


def test_built_in_entities_are_in_two_halves():
    made = relations.builtin_entities()
    assert [e.popular for e in made].count(100.0) == [e.popular for e in made].count(0.0) == 30
    assert len({e.name for e in made}) == 60
    assert all(compared_words(e.description) for e in made)


def test_tables_are_read_as_written():
    assert facts.subjects_and_objects("gray/grey: ash coal_tar\nred: blood") == [
        ("ash", ("gray", "grey")),
        ("coal tar", ("gray", "grey")),
        ("blood", ("red",)),
    ]


# -- files


def test_a_tsv_file_of_facts(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text(
        "relation\tsubject\tobject\ttemplate\ttext\n"
        'capital\tFrance\tParis\tThe capital of {} is\tA "letter" from France came\n'
        "capital\tSpain\tMadrid\t\t\n"
        "capital\tBolivia\tSucre\t\t\n"
        "capital\tBolivia\tLa Paz\t\t\n"
        "river of\tEgypt\tNile\t\t\n"
    )
    capital, river = relation_files.load_relations(path)
    assert capital.template == "The capital of {} is"
    assert capital.target == "The capital of x"
    assert capital.facts == (
        Fact("France", ("Paris",), ('A "letter" from France came',)),
        Fact("Spain", ("Madrid",)),
        Fact("Bolivia", ("Sucre", "La Paz")),
    )
    assert (river.template, river.target) == ("The river of of {} is", "The river of of x")


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz"])
def test_jsonl_files_of_facts_and_templates_are_read_as_one(tmp_path, name):
    path = lines(tmp_path / name, [
        {"relation": "a", "subject": "Oslo", "object": ["Norway", "the Kingdom of Norway"]},
        {"relation": "b", "subject": "milk", "object": "white", "prompt_target": "The color of x",
         "prompt_source": "some milk and"},
        {"relation": "b", "subject": "milk", "object": "white", "prompt_target": "The color of x",
         "prompt_source": "of milk"},
    ])  # fmt: skip
    about = lines(tmp_path / "about.jsonl", [{"relation": "a", "prompt_templates": ["{} is in", "unused {}"]}])
    a, b = relation_files.load_relations([path, about])
    assert (a.template, a.facts) == ("{} is in", (Fact("Oslo", ("Norway", "the Kingdom of Norway")),))
    assert a.target == "The a of x"
    assert (b.template, b.target) == ("The color of {} is", "The color of x")
    assert b.facts == (Fact("milk", ("white",), ("some milk and", "of milk")),)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"relation": "a", "subject": "", "object": "b"}, "line 1.*subject ''"),
        ({"relation": "a", "subject": "b"}, "line 1.*object"),
        ({"relation": "a", "subject": "b", "object": 3}, "line 1.*object 3"),
        ({"relation": "a", "subject": "b", "object": "c", "text": "nothing"}, "line 1.*not in the text"),
        ({"relation": "a", "subject": "b", "object": "c", "template": "no place"}, "line 1.*write {} once"),
        (
            {"relation": "a", "subject": "b", "object": "c", "target": "The color of it"},
            "end it with the placeholder x",
        ),
        ({"relation": "a", "template": "{} is"}, "no facts"),
        ({"relation": "a"}, "line 1.*no template"),
        ([], "line 1.*object with keys"),
    ],
)
def test_what_is_no_fact_is_refused(tmp_path, row, told):
    with pytest.raises(LenscopeError, match=told):
        relation_files.load_relations(lines(tmp_path / "bad.jsonl", [row]))


def test_files_as_spreadsheets_and_data_frames_write_them(tmp_path):
    facts = (Fact("Dune", ('Frank "the" Herbert',)), Fact("Emma", ("Jane Austen",)))
    rows = 'relation\tsubject\tobject\nauthor\tDune\t"Frank ""the"" Herbert"\nauthor\tEmma\tJane Austen\n'
    for name, text, encoding in (
        ("a.tsv", rows, "utf-8"),
        ("a.tsv", rows.replace("\n", "\r\n"), "utf-16"),
        ("a.csv", rows.replace("\t", ","), "utf-8-sig"),
        (
            "a.csv",
            "," + rows.replace("\t", ",").replace("author,D", "0,author,D").replace("author,E", "1,author,E"),
            "utf-8",
        ),
    ):
        (tmp_path / name).write_bytes(text.encode(encoding))
        (found,) = relation_files.load_relations(tmp_path / name)
        assert (found.name, found.facts) == ("author", facts)
    (tmp_path / "a.csv").write_text(rows.replace("\t", ";"))
    with pytest.raises(LenscopeError, match=r"a\.csv: its header has no commas between columns"):
        relation_files.load_relations(tmp_path / "a.csv")


def test_the_patchscopes_authors_files(tmp_path):
    path = tmp_path / "country_capital_city.tsv"
    path.write_text(
        "\tsample_id\tprompt_target\tposition_target\tobject\tsubject\tprompt_source\tposition_source\n"
        "0\t0\tThe capital city of x\t-1\tParis\tFrance\ta trip to France\t3\n"
        '1\t1\tThe capital city of x\t-1\tParis\tFrance\t"in ""la"" France, which"\t5\n'
        "2\t2\tThe capital city of x\t-1\tMadrid\tSpain\tSpain is\t0\n"
    )
    (found,) = relation_files.load_relations(path)
    assert (found.name, found.template, found.target) == (
        "country_capital_city", "The capital city of {} is", "The capital city of x"
    )  # fmt: skip
    assert found.facts == (
        Fact("France", ("Paris",), ("a trip to France", 'in "la" France, which')),
        Fact("Spain", ("Madrid",), ("Spain is",)),
    )


@pytest.mark.parametrize("name", ["none.tsv", "none.jsonl", "some.csv"])
def test_files_that_cannot_be_read_are_refused(tmp_path, name):
    with pytest.raises(LenscopeError, match=name):
        relation_files.load_relations(tmp_path / name)
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(LenscopeError, match=r"broken\.jsonl, line 1: is not JSON"):
        relation_files.load_relations(tmp_path / "broken.jsonl")


def test_chains_and_entities_of_files(tmp_path):
    row = {
        "relation1": "landmark", "relation2": "capital", "subject": "Indus", "bridge": "India", "answer": "New Delhi",
        "hop1_prompt": "Indus is in", "hop1_phrase": "the country of Indus", "hop2_template": "The capital of {} is",
    }  # fmt: skip
    (chain,) = relation_files.load_chains(lines(tmp_path / "chains.jsonl", [row]))
    assert chain == Chain(
        "landmark → capital", "Indus", "India", "New Delhi", "{} is in", "the country of {}", "The capital of {} is"
    )
    assert chain.questions[2] == "The capital of the country of Indus is"
    with pytest.raises(LenscopeError, match="line 1: is no two-hop question"):
        relation_files.load_chains(lines(tmp_path / "bad.jsonl", [{**row, "hop1_phrase": "the country"}]))
    people = [
        {"name": "Ada", "description": "a mathematician", "popularity_percentile": 99.5},
        {"name": "Bob", "description": None},
        {"name": "Cleo", "description": "a cat"},
    ]
    assert relation_files.load_entities(lines(tmp_path / "entities.jsonl", people)) == [
        relations.Entity("Ada", "a mathematician", 99.5),
        relations.Entity("Cleo", "a cat"),
    ]
    with pytest.raises(LenscopeError, match="line 1: is no entity"):
        relation_files.load_entities(lines(tmp_path / "bad.jsonl", [{"description": "nobody"}]))


# -- prompts


def test_the_last_mention_of_a_subject_as_a_whole_word():
    assert relations.subject_end("a cat, the cat in a catalogue", "cat") == len("a cat, the cat")
    assert relations.subject_end("two cats", "cat") == len("two cat")
    with pytest.raises(LenscopeError, match="not in the text"):
        relations.subject_end("a dog", "cat")


def test_a_state_up_to_a_subject_is_that_of_the_whole_text(lm64):
    text = "The cat sat on the mat, and the cat was a test."
    short = relations.prompt_up_to(lm64, text, "cat")
    assert short.text.endswith("the cat")
    whole = lm64.read(text)
    assert short.ids == whole.prompts[0].ids[: len(short)]
    torch.testing.assert_close(lm64.read(short)[:, -1], whole[:, len(short) - 1], rtol=0, atol=1e-12)


def usual(shown):
    """A subject with the demonstrations that most have."""
    return max(shown, key=lambda s: [*shown.values()].count(shown[s]))


def test_few_shot_prompts_share_their_demonstrations():
    prompts = {f.subject: model_knowledge.fact_prompt(CITY, f, 2) for f in CITY.facts}
    answers = {f.subject: f.answers[0] for f in CITY.facts}
    shown = {}
    for subject, prompt in prompts.items():
        *demonstrations, last = prompt.split("\n")
        assert last == f"The capital of {subject} is"
        shown[subject] = [re.fullmatch(r"The capital of (\w+) is (\w+)\.", line).groups() for line in demonstrations]
        assert len({s for s, _ in shown[subject]} - {subject}) == 2
        assert all(answers[s] == a for s, a in shown[subject])
    # who is not among the first two has those two before it
    (common,) = {tuple(s for s, _ in v) for subject, v in shown.items() if subject not in dict(shown[usual(shown)])}
    assert len(common) == 2
    assert model_knowledge.fact_prompt(CITY, CITY.facts[0], 0) == "The capital of France is"
    with pytest.raises(LenscopeError, match="city has 3 other facts"):
        model_knowledge.fact_prompt(CITY, CITY.facts[0], 4)


# -- what a model knows


def test_known_facts_are_what_the_model_itself_goes_on_to_say(lm64):
    plain = Relation(
        "r", "The {} of", "The x", tuple(Fact(s, ("cat",)) for s in ("mat", "test", "cat", "capital", "a"))
    )
    said = [compared_words(greedy(lm64, model_knowledge.fact_prompt(plain, fact, 3), 8)) for fact in plain.facts]
    assert all(said)
    # every second fact gets what the model says of it as another name of its object
    names = [("cat", own[0]) if n % 2 else ("cat",) for n, own in enumerate(said)]
    relation = Relation("r", plain.template, plain.target, tuple(
        Fact(f.subject, a) for f, a in zip(plain.facts, names, strict=True)))  # fmt: skip
    done = []
    right = model_knowledge.known_facts(lm64, relation, 3, progress=lambda *n: done.append(n))
    expected = [own[0] in names_of for own, names_of in zip(said, names, strict=True)]
    assert right.tolist() == expected
    assert {True, False} == set(expected)
    assert done == [(5, 5)]


def test_answers_are_as_many_as_prompts(lm64):
    with pytest.raises(LenscopeError, match="2 prompts, 1 answers"):
        model_knowledge.answers_correctly(lm64, ["a", "b"], ["c"])


def test_demonstrations_of_chains_have_other_bridges(lm64, monkeypatch):
    asked = {}

    def take(lm, prompts, answers, progress):
        asked.update(prompts=prompts, answers=answers)
        return np.arange(len(prompts)) % 2 == 0

    monkeypatch.setattr(model_knowledge, "answers_correctly", take)
    chains = [c for c in relations.builtin_chains() if c.name == "city → language"][:12]
    assert len({c.bridge for c in chains}) < len(chains)
    hops = model_knowledge.known_chains(lm64, chains, 2)
    assert hops.shape == (12, 3)
    assert hops[:, 0].tolist() == [n % 2 == 0 for n in range(12)]
    for hop in range(3):
        for chain, prompt in zip(chains, asked["prompts"][hop * 12 : hop * 12 + 12], strict=True):
            *shown, last = prompt.split("\n")
            assert last == chain.questions[hop]
            assert len(shown) == 2
            subjects = {c.subject for c in chains if c.bridge == chain.bridge}
            assert not any(subject in line for subject in subjects for line in shown)
            assert not any(chain.bridge in line for line in shown)
    assert asked["answers"] == [c.bridge for c in chains] + 2 * [c.answer for c in chains]
    with pytest.raises(LenscopeError, match="fewer shots"):
        model_knowledge.known_chains(lm64, chains[:2], 3)
