"""Every setting of the completion networks can be exported: no operator that ONNX lacks."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from glci_dist.models.completion import CompletionNetwork
from glci_dist.models.context_encoder import ContextEncoder
from tests.models.test_completion import photos_and_masks, settle

NETWORKS = {
    "paper": lambda: CompletionNetwork(width=0.1),
    "residual-mean": lambda: CompletionNetwork(width=0.1, residual=True, enlarge="resize"),
    "modern": lambda: CompletionNetwork(
        width=0.1,
        fill="pyramid",
        mirror=True,
        residual=True,
        skips=True,
        blocks="residual",
        dilations=(2, 4, 8, 1),
        enlarge="resize_after",
    ),
    "context-encoder": lambda: ContextEncoder(size=32, width=0.1, fill="pyramid", mirror=True, residual=True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_network_gives_the_same_output(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network: nn.Module = NETWORKS[name]()
    photos, masks = photos_and_masks(32)
    settle(network, photos, masks)
    network.eval()
    is_any_size = name != "context-encoder"
    axes = {0: "batch", 2: "height", 3: "width"} if is_any_size else {0: "batch"}
    file = tmp_path / "network.onnx"
    with warnings.catch_warnings():
        # The number of the pyramid's levels is the example's.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (photos, masks),
            file,
            dynamo=False,
            opset_version=17,
            input_names=["photos", "masks"],
            output_names=["output"],
            dynamic_axes=dict.fromkeys(("photos", "masks", "output"), axes),
        )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for size, count in ((32, 2), (44, 3)) if is_any_size else ((32, 2), (32, 3)):
        photos, masks = photos_and_masks(size, count)
        with torch.no_grad():
            expected = network(photos, masks)
        (output,) = session.run(None, {"photos": photos.numpy(), "masks": masks.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-5, rtol=0)
