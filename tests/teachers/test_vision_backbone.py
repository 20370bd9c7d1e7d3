"""Folded networks compute the same, and one that would not is left alone."""

from __future__ import annotations

import timm
import torch
from torch import nn

from advl_pipeline.base.batch_norms import fold_batch_norms


def trained_looking(network: nn.Module) -> nn.Module:
    """Give the batch norms statistics and scales that folding must respect."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, spread in ((module.weight, 0.3), (module.bias, 0.2), (module.running_mean, 0.2)):
                values.data += spread * torch.randn(values.shape, generator=generator)
            module.running_var.data *= 0.5 + torch.rand(module.running_var.shape, generator=generator)
    return network.eval()


def test_folding_keeps_the_function() -> None:
    network = trained_looking(timm.create_model("tf_efficientnet_lite0", pretrained=False))
    pixels = torch.rand(2, 3, 64, 64)
    folded = fold_batch_norms(network, pixels)
    assert folded is not network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    other = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(other), network(other), atol=1e-4, rtol=1e-3)


class OutOfOrder(nn.Module):
    """Registers a batch norm after a convolution, but runs it before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(self.norm(pixels_NCHW))
        return result


def test_a_network_that_folding_would_change_or_that_has_nothing_to_fold_is_left_alone() -> None:
    for network in (trained_looking(OutOfOrder()), nn.Conv2d(3, 3, 3).eval()):
        assert fold_batch_norms(network, torch.rand(1, 3, 8, 8)) is network
