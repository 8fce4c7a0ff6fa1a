"""InceptionV3 sees what torch-fidelity's sees; EfficientNet's like is in tests/evaluation/test_feature_metrics.py."""

import numpy as np
import pytest
import torch
from torch import Tensor

from glci_dist.models.inception import InceptionV3, resize_as_tensorflow1


def drawn_weights() -> dict[str, Tensor]:
    """Weights of InceptionV3's shapes, drawn at random in the order of their names."""
    with torch.device("meta"):
        empty = object.__new__(InceptionV3)
        shapes: dict[str, tuple[int, ...]] = {}
        try:
            InceptionV3.__init__(empty, {})
        except RuntimeError:
            shapes = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
    random = np.random.Generator(np.random.Philox(key=7))
    weights = {}
    for name in sorted(shapes):
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
            continue
        drawn = torch.from_numpy(random.standard_normal(shapes[name]).astype(np.float32))
        if name.endswith("conv.weight"):
            weights[name] = drawn * (2 / drawn[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            weights[name] = 1 + 0.2 * drawn.abs()
        else:
            weights[name] = 0.1 * drawn
    return weights


def test_inception_gives_the_features_that_torch_fidelity_gives() -> None:
    """The expected ones: of torch-fidelity 0.4.0, over the same weights and pictures. It needs torchvision, whose
    builds need not fit this torch, so it is no dependency."""
    network = InceptionV3(drawn_weights())
    random = np.random.Generator(np.random.Philox(key=8))
    pictures = torch.from_numpy(random.integers(0, 256, (2, 3, 64, 64)).astype(np.float32))
    features = network(pictures)
    assert features.shape == (2, 2048)
    expected = [
        [0.1986272931098938, 2.605961799621582, 0.0, 0.34502485394477844],
        [0.1790124624967575, 2.667440891265869, 0.0, 0.34476128220558167],
    ]
    assert features[:, ::512].numpy() == pytest.approx(np.array(expected), abs=1e-4)
    assert features.mean(1).tolist() == pytest.approx([2.77712082862854, 2.787937641143799], abs=1e-4)
    assert features.std(1).tolist() == pytest.approx([3.7150440216064453, 3.732353448867798], abs=1e-4)


def test_pictures_are_enlarged_from_their_corners() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    found = resize_as_tensorflow1(ramp, 8)[0, 0, 3]
    assert found.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        InceptionV3({"features.0.weight": torch.zeros(1)})
