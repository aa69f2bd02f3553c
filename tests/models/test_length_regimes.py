"""At which lengths a model's behaviour may change."""

from lenscope.models.length_regimes import Regimes


def test_lengths_that_a_configuration_names_are_found():
    config = {"sliding_window": 128, "mamba_chunk_size": 20, "hidden_size": 64, "layer_types": ["a"]}
    regimes = Regimes(config)
    assert {128, 20, 40, 60, 64} <= set(regimes.thresholds)
    assert 4096 in Regimes({"rope_parameters": {"original_max_position_embeddings": 4096}}).thresholds
    assert 704 in Regimes({"block_size": 64, "num_random_blocks": 3}).thresholds
    assert Regimes({"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152}).thresholds == ()
    window = Regimes({"sliding_window": 32})
    assert [window.of(n) for n in (1, 30, 31, 32, 33, 34, 500)] == [0, 0, 1, 2, 3, 4, 4]
    assert window.crossed(30, 40) == [30, 31, 32, 33]
    assert window.crossed(10, 30) == window.crossed(34, 99) == []
