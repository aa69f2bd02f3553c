import numpy as np
import pytest

from lenscope.errors import LenscopeError
from lenscope.tasks.text_match import compared_words, embedder, mentions, rouge, starts, text_similarity


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It is Paris.", "Paris", True),
        ("PARISIAN life", "Paris", False),
        ("in São Paulo", "sao  paulo", True),
        ("snow-white", "snow", True),
        ("the cat_food", "cat", False),
        ("C++ is", "C++", True),
        ("C is", "C++", False),
        ("", "x", False),
        ("a.b", "axb", False),
        ("the\n New\tYork times", "New York", True),
        ("Côte d’Ivoire", "Cote d'Ivoire", True),
        ("2001 was", "200", False),
    ],
)
def test_mentions_whole_words(text: str, answer: str, found: bool) -> None:
    assert mentions(text, answer) is found
    assert mentions(text, ["zebra", answer]) is found


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        (" Paris, which", "Paris", True),
        (' "the Paris" x', "Paris", True),
        ("\n- a Paris", "paris", True),
        (" Parisian", "Paris", False),
        (" not Paris", "Paris", False),
        ("the the Paris", "Paris", False),
        (" The Hague.", "The Hague", True),
        (" .NET", ".NET", True),
        ("anteater", "eater", False),
    ],
)
def test_starts_with_an_answer(text: str, answer: str, found: bool) -> None:
    assert starts(text, answer) is found


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("日本的首都是东京。", "东京", True),
        ("東京は日本の首都", "東京", True),
        ("首都は東京です", "京都", False),
        ("서울은 한국의 수도", "서울", True),
        ("수도는 서울입니다", "서울", True),
        ("กรุงเทพมหานครเป็นเมืองหลวง", "กรุงเทพ", True),
        ("ប្រទេសកម្ពុជា", "កម្ពុជា", True),
        ("ປະເທດລາວ", "ລາວ", True),
        ("မြန်မာနိုင်ငံ", "မြန်မာ", True),
        ("バリ", "パリ", False),
        ("バリ", "ハリ", False),
        ("ハリ", "バリ", False),
        ("ﾊﾞﾘ島", "バリ", True),
        ("か\u3099", "が", True),
        ("กี", "ก", False),
        ("किताब", "कत", False),
        ("कि", "क", False),
        ("दिल्ली है", "दिल्ली", True),
        ("दिल्लीवाला", "दिल्ली", False),
        ("각", "가", False),
        ("Paris는 도시", "Paris", True),
        ("2001年", "2001", True),
        ("カフェParisへ", "Paris", True),
        ("Parisian는", "Paris", False),
        ("das Café, Ångström", "cafe", True),
        ("Ελλάδα", "Ελλαδα", True),
        ("Москва́ город", "Москва", True),
        ("йод", "иод", False),
        ("Москвафоо", "Москва", False),
        ("الرياض عاصمة", "الرياض", True),
        ("٣٤٥", "٣٤", False),
    ],
)
def test_mentions_in_any_script(text: str, answer: str, found: bool) -> None:
    assert mentions(text, answer) is found
    if text.startswith(answer) or not found:
        assert starts(text, answer) is found
    assert starts(f"「{answer}」", answer)
    assert mentions(f"({answer})", answer)


def test_words_without_spaces_are_characters() -> None:
    assert compared_words("東京 is Tokyo, दिल्ली है 서울은 กี") == ["東", "京", "is", "tokyo", "दिल्ली", "है", "서울은", "กี"]
    assert rouge("日本の首都", "首都の東京").rouge1 == pytest.approx(3 / 5)
    assert rouge("バ", "パ") == (0.0, 0.0)


def test_answers_must_say_something() -> None:
    for bad in ("", " ", [], ["a", ""]):
        with pytest.raises(LenscopeError, match="answers"):
            mentions("a", bad)


def test_rouge_counts_words_and_order() -> None:
    # 3 of 4 and 3 of 5 words in common; in order: "the cat" … "mat" is 2 + …
    said, wanted = "The cat, on mat", "the mat has the cat"
    assert compared_words(said) == ["the", "cat", "on", "mat"]
    one, long = rouge(said, wanted)
    assert one == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert long == pytest.approx(2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5))
    assert rouge("a b", "b a") == (1.0, 0.5)
    assert rouge("", "x") == (0.0, 0.0)
    assert rouge("x x x", "x") == (0.5, 0.5)
    with pytest.raises(LenscopeError, match="no word"):
        rouge("a", "…")


def test_longest_common_subsequence_against_all_subsequences() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        a, b = (["xyz"[i] for i in random.integers(3, size=random.integers(1, 8))] for _ in range(2))
        best = 0
        for chosen in range(1 << len(a)):
            part = [w for n, w in enumerate(a) if chosen >> n & 1]
            rest = iter(b)
            if all(w in rest for w in part):
                best = max(best, len(part))
        assert rouge(" ".join(a), " ".join(b)).rougeL == pytest.approx(2 * best / (len(a) + len(b)))


def test_embeddings_are_weighted_means(lm64):
    embed = embedder(lm64)
    table = lm64.model.get_input_embeddings().weight.detach().double().numpy()
    ids = lm64.encoder.ids(" " + "one two")
    weights = [1e-3 / (1e-3 + 1 / ((i + 1) * np.log(len(table)))) for i in ids]
    expected = sum(w * (table[i] - table.mean(0)) for w, i in zip(weights, ids, strict=True))
    (made,) = embed(["one two"])
    np.testing.assert_allclose(made, expected / np.linalg.norm(expected), atol=1e-6)
    assert not embed([" "]).any()
    assert text_similarity(["one two", "one", ""], ["one two", "two", "one"], embed)[[0, 2]] == pytest.approx([1, 0])
    assert text_similarity(["one"], ["two"], embed)[0] < 0.999
    with pytest.raises(LenscopeError, match="one reference for each"):
        text_similarity(["a"], [], embed)
