"""The layers of the demo's student compute what transformers' layers of BERT do, to the bit."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer as OriginalLayer

from advl_data.scenes.students.bert_layer import BertLayer


@pytest.mark.parametrize("is_training", [False, True])
def test_a_layer_is_that_of_bert(is_training: bool) -> None:
    config = BertConfig(
        hidden_size=12,
        num_attention_heads=3,
        intermediate_size=20,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    original = OriginalLayer(config).train(is_training)
    torch.manual_seed(0)
    ours = BertLayer(12, 3, 20, 0.1).train(is_training)
    # The same names and the same draws.
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in original.state_dict().items())
    x_NTH, bias = torch.randn(2, 5, 12), torch.where(torch.rand(2, 1, 1, 5) < 0.3, -1e4, 0.0)
    outputs, gradients = [], []
    for layer in (original, ours):
        torch.manual_seed(1)
        outputs.append(layer(x_NTH, bias))
        outputs[-1].square().sum().backward()
        gradients.append([value.grad for value in layer.parameters()])
    assert torch.equal(*outputs)
    assert all(map(torch.equal, *gradients))
