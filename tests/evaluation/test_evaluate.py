"""What an evaluation promises: the same holes for everyone, no leak, figures that a program can read."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from glci_dist.config import HolesConfig
from glci_dist.errors import UserError
from glci_dist.evaluation.baselines import mean_colour, telea
from glci_dist.evaluation.evaluate import evaluate, take_samples
from glci_dist.evaluation.protocol import Protocol, box_protocol

SIZE = 32
Pairs = list[tuple[str, np.ndarray]]


def noise_photos(count: int) -> Pairs:
    rng = np.random.default_rng(5)
    return [(f"shard/{i}", rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for i in range(count)]


@pytest.fixture
def protocol() -> Protocol:
    return box_protocol(SIZE, HolesConfig(min_side=8, max_side=16, patch=20))


def echo(photos: Tensor, masks: Tensor) -> Tensor:
    """Returns what it is shown."""
    return photos.permute(0, 3, 1, 2).float() / 255


def test_a_method_never_sees_what_is_behind_the_hole(protocol: Protocol) -> None:
    white = [("white", np.full((SIZE, SIZE, 3), 255, np.uint8))]
    result = evaluate({"echo": echo}, white, protocol)
    assert result.summary("echo", "hole_l1_x100").mean == pytest.approx(100.0)


def test_only_the_hole_of_a_completion_counts(protocol: Protocol) -> None:
    photos = noise_photos(3)
    grey = mean_colour((0.5, 0.5, 0.5))

    def spoilt_outside(shown: Tensor, masks: Tensor) -> Tensor:
        return torch.where(masks > 0.5, grey(shown, masks), torch.rand(len(shown), 3, SIZE, SIZE))

    result = evaluate({"grey": grey, "spoilt": spoilt_outside}, photos, protocol)
    for metric in ("hole_l1_x100", "psnr_db", "ssim"):
        assert result.summary("grey", metric) == result.summary("spoilt", metric)


def test_figures_do_not_depend_on_the_batch(protocol: Protocol) -> None:
    photos = noise_photos(7)
    one = evaluate({"telea": telea}, photos, protocol, batch=2)
    other = evaluate({"telea": telea}, photos, protocol, batch=64)
    assert one.holes_sha256 == other.holes_sha256
    assert one.keys == other.keys == tuple(key for key, _ in photos)
    assert np.allclose(one.per_photo["telea"].hole_l1_x100, other.per_photo["telea"].hole_l1_x100, rtol=1e-5)
    assert np.allclose(one.per_photo["telea"].ssim, other.per_photo["telea"].ssim, rtol=1e-5)


def test_means_are_over_photos_not_over_hole_values(protocol: Protocol) -> None:
    black = [(str(i), np.zeros((SIZE, SIZE, 3), np.uint8)) for i in range(2)]

    def by_photo(shown: Tensor, masks: Tensor) -> Tensor:
        return torch.tensor([0.1, 0.4]).reshape(2, 1, 1, 1).expand(2, 3, SIZE, SIZE)

    summary = evaluate({"m": by_photo}, black, protocol).summary("m", "hole_l1_x100")
    assert summary.mean == pytest.approx(25.0)
    assert summary.standard_error == pytest.approx(15.0)


def test_the_json_holds_the_protocol_and_every_figure(protocol: Protocol) -> None:
    photos = noise_photos(4)
    result = evaluate({"mean colour": mean_colour((0.5, 0.4, 0.3)), "Telea": telea}, photos, protocol)
    document = json.loads(result.to_json())
    assert document["photos"] == 4
    assert document["protocol"]["name"] == "box"
    assert document["protocol"]["seed"] == protocol.seed
    assert document["protocol"]["holes"]["min_side"] == 8
    assert document["holes_sha256"] == protocol.digest(4)
    assert list(document["methods"]) == ["mean colour", "Telea"]
    for figures in document["methods"].values():
        assert list(figures) == ["hole_l1_x100", "psnr_db", "ssim"]
        assert all(math.isfinite(figure["mean"]) for figure in figures.values())
        assert all(figure["standard_error"] > 0 for figure in figures.values())


def test_the_json_of_a_single_photo_is_valid(protocol: Protocol) -> None:
    document = json.loads(evaluate({"Telea": telea}, noise_photos(1), protocol).to_json())
    assert document["methods"]["Telea"]["psnr_db"]["standard_error"] is None


def test_the_table_is_aligned_and_shows_each_method_once(protocol: Protocol) -> None:
    result = evaluate({"mean colour": mean_colour((0.5,) * 3), "Telea": telea}, noise_photos(2), protocol)
    lines = result.table().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    assert [line.split("|")[1].strip() for line in table[2:]] == ["mean colour", "Telea"]
    assert f"{result.summary('Telea', 'psnr_db').mean:.2f}" in table[3]
    assert str(protocol.seed) in lines[-1]


def test_samples_are_the_first_photos_with_the_holes_of_the_evaluation(protocol: Protocol) -> None:
    photos = noise_photos(5)
    samples = take_samples({"telea": telea, "echo": echo}, iter(photos), protocol, count=3)
    masks = protocol.masks(range(5))
    assert [sample.key for sample in samples] == [key for key, _ in photos[:3]]
    for number, sample in enumerate(samples):
        hole = masks[number, 0].numpy() > 0
        assert np.array_equal(sample.hole, hole)
        assert np.array_equal(sample.photo, photos[number][1])
        assert np.array_equal(sample.completed["telea"][~hole], sample.photo[~hole])
        assert np.array_equal(sample.completed["telea"][hole], sample.outputs["telea"][hole])
        assert (sample.outputs["echo"][hole] == 0).all()


def test_no_photos_is_a_clear_refusal(protocol: Protocol) -> None:
    with pytest.raises(UserError, match="no photos"):
        evaluate({"Telea": telea}, [], protocol)


def test_a_diverged_network_is_named_with_its_photo(protocol: Protocol) -> None:
    def diverged(photos: Tensor, masks: Tensor) -> Tensor:
        output = torch.zeros(len(photos), 3, SIZE, SIZE)
        output[1, 0, 0, 0] = float("nan")
        return output

    with pytest.raises(UserError, match=r"network completes shard/1 .*not finite"):
        evaluate({"network": diverged}, noise_photos(3), protocol)
