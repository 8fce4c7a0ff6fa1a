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
from glci_dist.evaluation.evaluate import complete_samples
from glci_dist.evaluation.protocol import HoleProtocol, frozen_protocol
from tests.evaluation.measured import evaluated, noise_photos

SIZE = 32


@pytest.fixture
def protocol() -> HoleProtocol:
    return frozen_protocol("box", SIZE, HolesConfig(min_side=8, max_side=16, patch=20))


def echo(photos: Tensor, masks: Tensor) -> Tensor:
    """Returns what it is shown."""
    return photos.permute(0, 3, 1, 2).float() / 255


def test_a_method_never_sees_what_is_behind_the_hole(protocol: HoleProtocol) -> None:
    white = [("white", np.full((SIZE, SIZE, 3), 255, np.uint8))]
    result = evaluated({"echo": echo}, white, protocol)
    assert result.summary("echo", "hole_l1_x100").value == pytest.approx(100.0)


def test_only_the_hole_of_a_completion_counts(protocol: HoleProtocol) -> None:
    photos = noise_photos(3)
    grey = mean_colour((0.5, 0.5, 0.5))

    def spoilt_outside(shown: Tensor, masks: Tensor) -> Tensor:
        return torch.where(masks > 0.5, grey(shown, masks), torch.rand(len(shown), 3, SIZE, SIZE))

    result = evaluated({"grey": grey, "spoilt": spoilt_outside}, photos, protocol)
    for metric in ("hole_l1_x100", "psnr_db", "ssim", "seam"):
        assert result.summary("grey", metric) == result.summary("spoilt", metric)


def test_figures_do_not_depend_on_the_batch(protocol: HoleProtocol) -> None:
    photos = noise_photos(7)
    one = evaluated({"telea": telea}, photos, protocol, batch=2)
    other = evaluated({"telea": telea}, photos, protocol, batch=64)
    assert one.holes_sha256 == other.holes_sha256
    assert one.keys == other.keys == tuple(key for key, _ in photos)
    for name in ("hole_l1_x100", "psnr_db", "ssim", "seam"):
        assert np.allclose(one.per_photo["telea"][name], other.per_photo["telea"][name], rtol=1e-5)


def test_means_are_over_photos_not_over_hole_values(protocol: HoleProtocol) -> None:
    black = [(str(i), np.zeros((SIZE, SIZE, 3), np.uint8)) for i in range(2)]

    def by_photo(shown: Tensor, masks: Tensor) -> Tensor:
        return torch.tensor([0.1, 0.4]).reshape(2, 1, 1, 1).expand(2, 3, SIZE, SIZE)

    assert evaluated({"m": by_photo}, black, protocol).value("m", "hole_l1_x100") == pytest.approx(25.0)


def test_the_seam_is_the_mean_jump_of_all_composites_over_that_of_all_photos(protocol: HoleProtocol) -> None:
    # In the second photo, whose own jumps are small, the completion's are large: it must not count for more.
    ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE))[..., None].repeat(3, 2)
    photos = [
        ("a", (4 * ramp).astype(np.uint8)),
        ("b", (ramp // 8).astype(np.uint8)),
        ("flat", np.zeros_like(ramp, np.uint8)),
    ]

    def grey(shown: Tensor, masks: Tensor) -> Tensor:
        return torch.full((len(shown), 3, SIZE, SIZE), 0.5)

    result = evaluated({"grey": grey}, photos, protocol, replicates=200)
    masks = protocol.masks(range(3))[:, 0].numpy() > 0.5
    jumps = []
    for (_, photo), hole in zip(photos, masks, strict=True):
        shown = photo[..., 0] / 255
        pairs = [
            (row, column, row + down, column + 1 - down)
            for row, column in np.ndindex(SIZE, SIZE)
            for down in (0, 1)
            if row + down < SIZE
            and column + 1 - down < SIZE
            and hole[row, column] != hole[row + down, column + 1 - down]
        ]
        jumps.append(
            np.mean(
                [
                    [abs(image[a, b] - image[c, d]) for a, b, c, d in pairs]
                    for image in (np.where(hole, 0.5, shown), shown)
                ],
                1,
            )
        )
    # The flat photo's own jump is 0; that of its composite counts as any other.
    composites, originals = np.sum(jumps, axis=0)
    assert jumps[2][1] == 0
    assert result.value("grey", "seam") == pytest.approx(composites / originals, rel=1e-5)
    assert np.isnan(result.value("grey", "seam", np.array([False, False, True])))
    # A resample of the flat photo alone has none.
    assert result.summary("grey", "seam").low is None


def test_the_json_holds_the_protocol_and_every_figure(protocol: HoleProtocol) -> None:
    photos = noise_photos(4)
    result = evaluated({"mean colour": mean_colour((0.5, 0.4, 0.3)), "Telea": telea}, photos, protocol)
    document = json.loads(result.to_json())
    assert document["photos"] == 4
    assert document["protocol"]["name"] == "box"
    assert document["protocol"]["seed"] == protocol.seed
    assert document["protocol"]["holes"]["min_side"] == 8
    assert document["holes_sha256"] == protocol.digest(4)
    assert list(document["methods"]) == ["mean colour", "Telea"]
    for figures in document["methods"].values():
        assert list(figures) == ["hole_l1_x100", "psnr_db", "ssim", "seam"]
        assert all(math.isfinite(figure["value"]) for figure in figures.values())
        assert all(figure["low"] < figure["value"] < figure["high"] for figure in figures.values())
        sizes = document["by_hole_size"]["Telea"]
        assert sum(size["photos"] for size in sizes.values()) == 4


def test_the_json_of_a_single_photo_is_valid(protocol: HoleProtocol) -> None:
    document = json.loads(evaluated({"Telea": telea}, noise_photos(1), protocol).to_json())
    assert document["methods"]["Telea"]["psnr_db"]["low"] is None


def test_the_table_is_aligned_and_shows_each_method_and_figure_once(protocol: HoleProtocol) -> None:
    result = evaluated({"mean colour": mean_colour((0.5,) * 3), "Telea": telea}, noise_photos(2), protocol)
    lines = result.table().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    assert [cell.strip() for cell in table[0].split("|")[2:-1]] == ["mean colour", "Telea"]
    assert [line.split("|")[1].split()[0] for line in table[2:]] == ["l1", "PSNR", "SSIM", "seam:"]
    assert f"{result.value('Telea', 'psnr_db'):.2f}" in table[3].split("|")[3]
    assert str(protocol.seed) in lines[-1]


def test_the_ratio_of_two_networks_is_surer_than_either(protocol: HoleProtocol) -> None:
    """Its resamples share the photos, whose difficulty cancels."""
    photos = noise_photos(24)
    methods = {"one": mean_colour((0.5, 0.4, 0.3)), "other": mean_colour((0.6, 0.4, 0.3))}
    result = evaluated(methods, photos, protocol)
    ratio = result.ratio("other", "one", "hole_l1_x100")
    alone = [result.summary(method, "hole_l1_x100") for method in methods]
    assert ratio.value == pytest.approx(alone[1].value / alone[0].value)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < ratio.value < ratio.high
    for each in alone:
        assert each.low is not None
        assert each.high is not None
        assert (ratio.high - ratio.low) / ratio.value < 0.8 * (each.high - each.low) / each.value
    told = result.table(["one", "other"])
    assert "other over one" in told
    assert f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" in told


def test_figures_by_the_holes_size_are_those_of_these_photos_alone(protocol: HoleProtocol) -> None:
    result = evaluated({"Telea": telea}, noise_photos(40), protocol)
    document = json.loads(result.to_json())["by_hole_size"]["Telea"]
    shares = protocol.masks(range(40)).mean((1, 2, 3)).numpy()
    assert list(document) == ["under 10%", "10 to 20%", "20 to 30%"]
    for (low, high), size in zip(((0, 0.1), (0.1, 0.2), (0.2, 0.3)), document.values(), strict=True):
        rows = (shares >= low) & (shares < high)
        assert size["photos"] == rows.sum() > 1
        assert size["psnr_db"] == pytest.approx(result.per_photo["Telea"]["psnr_db"][rows].mean())


def test_samples_are_the_first_photos_with_the_holes_of_the_evaluation(protocol: HoleProtocol) -> None:
    photos = noise_photos(5)
    samples = complete_samples({"telea": telea, "echo": echo}, photos, protocol, count=3)
    masks = protocol.masks(range(5))
    assert [sample.key for sample in samples] == [key for key, _ in photos[:3]]
    for number, sample in enumerate(samples):
        hole = masks[number, 0].numpy() > 0
        assert np.array_equal(sample.hole, hole)
        assert np.array_equal(sample.photo, photos[number][1])
        assert np.array_equal(sample.completed["telea"][~hole], sample.photo[~hole])
        assert np.array_equal(sample.completed["telea"][hole], sample.outputs["telea"][hole])
        assert (sample.outputs["echo"][hole] == 0).all()


def test_no_photos_is_a_clear_refusal(protocol: HoleProtocol) -> None:
    with pytest.raises(UserError, match="no photos"):
        evaluated({"Telea": telea}, [], protocol)


def test_a_diverged_network_is_named_with_its_photo(protocol: HoleProtocol) -> None:
    def diverged(photos: Tensor, masks: Tensor) -> Tensor:
        output = torch.zeros(len(photos), 3, SIZE, SIZE)
        output[1, 0, 0, 0] = float("nan")
        return output

    with pytest.raises(UserError, match=r"network completes shard/1 .*not finite"):
        evaluated({"network": diverged}, noise_photos(3), protocol)
