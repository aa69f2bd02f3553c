"""What is remembered, and how much."""

from lenscope.web.requests import ExplanationIn, GridIn, PromptIn, TargetIn, TrajectoryIn
from lenscope.web.results_cache import Answered, ResultsCache, request_key


def answer(size):
    return Answered([("payload", b"x" * size)])


def test_requests_are_the_same_where_they_ask_for_the_same():
    asked = [
        TrajectoryIn(prompt=PromptIn(text="a"), lens="b"),
        TrajectoryIn(lens="b", prompt=PromptIn(text="a"), top_k=5, layers=None),
        TrajectoryIn(prompt=PromptIn(text="a"), lens="b", layers=[0]),
        TrajectoryIn(prompt=PromptIn(ids=[1]), lens="b"),
    ]
    keys = [request_key("trajectory", one) for one in asked]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert request_key("other", asked[0]) != keys[0]


def test_a_contrast_makes_another_request():
    prompt, target = PromptIn(text="a"), TargetIn(name="entity")
    about = {"prompt": prompt, "target": target, "position": 0}
    for kind, asked in ((ExplanationIn, {**about, "layer": 1}), (GridIn, about)):
        keys = [request_key("one", kind(**asked, **more)) for more in ({}, {"contrast": 0}, {"contrast": 0.5})]
        assert keys[0] == keys[1] != keys[2]


def test_the_oldest_are_forgotten():
    cache = ResultsCache(entries=3, size=4000)
    for name in "abc":
        cache.put(name, answer(10))
    assert cache.get("a")
    cache.put("d", answer(10))
    assert [bool(cache.get(name)) for name in "abcd"] == [True, False, True, True]


def test_sizes_are_counted_and_what_is_too_large_is_not_kept():
    cache = ResultsCache(entries=100, size=4000)
    cache.put("large", answer(2000))
    assert cache.get("large") is None
    for n in range(10):
        cache.put(str(n), answer(900))
    assert len(cache) == 4
    cache.put("9", answer(100))
    cache.put("10", answer(600))
    assert len(cache) == 5
