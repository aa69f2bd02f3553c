"""Computations that nobody waits for any more end soon, and leave the model as it was."""

import contextvars
import threading

import pytest
import threads
import tiny

import lenscope as ls
from lenscope.models.interruption import Interrupted, check_interruption, interruptible, may_stop

LONG = [5 + n % 250 for n in range(60)]


class Question:
    """Answers yes from the n-th time on that it is asked."""

    def __init__(self, n=10**9):
        self.n, self.asked = n, 0

    def __call__(self):
        self.asked += 1
        return self.asked >= self.n


def fresh():
    return ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny-llama")


@pytest.fixture(scope="module")
def right():
    return threads.alone(fresh())


@pytest.mark.parametrize("name", sorted(threads.calls(fresh())))
def test_every_call_can_be_interrupted_and_leaves_the_model_as_it_was(name, right):
    lm = fresh()
    call = threads.calls(lm)[name]
    counted = Question()
    with interruptible(counted):
        assert threads.untimed(call()) == right[name]
    assert counted.asked >= lm.n_layers
    for n in (1, 2, 3, 5, counted.asked // 2, counted.asked):
        stopped = Question(n)
        # what is measured of a model once is asked about the first time only
        with interruptible(stopped):
            try:
                call()
            except Interrupted:
                assert stopped.asked == n
            else:
                assert stopped.asked < n
        assert not may_stop()
        assert not [m for m in lm.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert threads.unlike(lm, right) == []


def test_a_model_whose_first_measurements_are_interrupted_measures_them_again(right):
    for n in (1, 4, 9, 20, 50):
        lm = fresh()
        with pytest.raises(Interrupted), interruptible(Question(n)):
            threads.alone(lm)
        assert threads.unlike(lm, right) == []


def test_a_forward_pass_ends_at_the_next_block(lm):
    passed = []
    with pytest.raises(Interrupted), interruptible(lambda: bool(passed)), lm.runner.watching(2, passed.append):
        lm.read(LONG)
    assert len(passed) == 1


def test_a_reduction_over_the_vocabulary_ends_between_its_pieces(lm, monkeypatch):
    from lenscope.measures import streamed

    monkeypatch.setattr(streamed, "PIECE_BYTES", 1)
    states = lm.read(LONG).tensor[0]
    asked = Question()
    run = {"k": 1, "final_is_last": True, "targets": None}
    with interruptible(asked):
        streamed.reduce(lm.runner.readout, lm.vocab_size, states, states[-1], **run)
    assert asked.asked > 2
    with pytest.raises(Interrupted), interruptible(Question(asked.asked)):
        streamed.reduce(lm.runner.readout, lm.vocab_size, states, states[-1], **run)


def test_who_waits_for_a_model_stops_waiting(lm):
    started, stop, ended = threading.Event(), threading.Event(), threading.Event()

    def work():
        started.set()
        try:
            with interruptible(stop.is_set):
                lm.read(LONG)
        except Interrupted:
            ended.set()

    with lm.lock:
        thread = threading.Thread(target=work)
        thread.start()
        started.wait(10)
        stop.set()
        assert ended.wait(10)
        thread.join(10)
    lm.read(LONG)


def test_nothing_is_asked_or_hooked_where_nothing_may_be_interrupted(lm):
    hooks = []
    with lm.runner.watching(1, lambda h: hooks.extend(len(b._forward_pre_hooks) for b in lm.runner.anatomy.blocks)):
        lm.read(LONG)
    # before the first block passes are counted, and its input is read
    assert hooks == [2, 0, 0, 0]
    check_interruption()


def test_blocks_within_one_another_all_count():
    with interruptible(lambda: True), interruptible(lambda: False), pytest.raises(Interrupted):
        check_interruption()
    with interruptible(lambda: False), interruptible(lambda: True), pytest.raises(Interrupted):
        check_interruption()
    with interruptible(lambda: False):
        check_interruption()


def test_a_generator_may_be_closed_in_another_task_than_it_was_begun_in():
    def steps():
        with interruptible(lambda: True):
            yield

    begun = steps()
    contextvars.copy_context().run(next, begun)
    begun.close()
    assert not may_stop()


def test_other_threads_are_not_interrupted(lm):
    results = []
    with interruptible(lambda: True):
        thread = threading.Thread(target=lambda: results.append(lm.read(LONG)))
        thread.start()
        thread.join(60)
    assert len(results) == 1
