"""A tensor-parallel model is told from others."""

from lenscope.distributed.tensor_parallel import is_tensor_parallel


def test_a_model_of_one_process_is_not_tensor_parallel(lm, monkeypatch):
    assert not is_tensor_parallel(lm)
    monkeypatch.setattr(lm.model, "_tp_size", 2, raising=False)
    assert is_tensor_parallel(lm)
