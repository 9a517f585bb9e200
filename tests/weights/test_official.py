"""Official names and layouts: there and back bit for bit, and a state dict that does not fit is refused by name."""

import dataclasses

import numpy as np
import pytest

from dit.design.config import ModelConfig
from dit.errors import UserError
from dit.weights import official


@pytest.fixture(params=["model_patch2", "model_patch4"])
def released(request, golden):
    arrays = golden(request.param)
    config = ModelConfig(
        "adaln_zero", **{k.removeprefix("config/"): v.item() for k, v in arrays.items() if "config/" in k}
    )
    return {k.removeprefix("state_dict/"): v for k, v in arrays.items() if k.startswith("state_dict/")}, config


def test_round_trip_is_bitwise_with_the_position_embedding_recomputed(released):
    state_dict, config = released
    back = official.to_official(official.to_ours(state_dict, config), config)
    assert back.keys() == state_dict.keys()
    for name, array in state_dict.items():
        assert back[name].dtype == array.dtype and back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_position_embedding_is_never_read(released):
    state_dict, config = released
    without = {name: array for name, array in state_dict.items() if name != "pos_embed"}
    assert official.to_official(official.to_ours(without, config), config).keys() == state_dict.keys()


def test_shapes_are_those_of_the_release(released):
    state_dict, config = released
    assert official.shapes(config) == {name: array.shape for name, array in state_dict.items()}


def test_tensors_that_are_missing_extra_or_misshapen_are_all_named(released):
    state_dict, config = released
    wrong = dict(state_dict)
    wrong["blocks.9.attn.qkv.weight"] = wrong.pop("blocks.1.mlp.fc2.bias")
    wrong["final_layer.linear.weight"] = wrong["final_layer.linear.weight"].T
    with pytest.raises(UserError) as error:
        official.to_ours(wrong, config)
    message = str(error.value)
    assert "missing ['blocks.1.mlp.fc2.bias']" in message
    assert "extra ['blocks.9.attn.qkv.weight']" in message
    assert f"final_layer.linear.weight is {wrong['final_layer.linear.weight'].shape}, expected" in message
    assert "\n" not in message


def test_a_model_without_label_dropout_has_no_null_row(released):
    state_dict, config = released
    with pytest.raises(UserError, match=r"y_embedder.embedding_table.weight is \(11, .*expected \(10, "):
        official.to_ours(state_dict, dataclasses.replace(config, class_dropout_prob=0.0))


@pytest.mark.parametrize("block", ["adaln", "cross_attention", "in_context"])
def test_blocks_that_the_release_lacks_are_refused(released, block):
    state_dict, config = released
    other = dataclasses.replace(config, block=block)
    for convert in (official.to_ours, official.to_official):
        with pytest.raises(UserError, match=f"'{block}'"):
            convert(state_dict, other)
