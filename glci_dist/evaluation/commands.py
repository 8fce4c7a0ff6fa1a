"""The command line of `glci evaluate`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

_HELP = """\
Complete every photo of some shards with the networks of one or more runs, on a frozen set of holes, and compare
them with two baselines (the mean colour, OpenCV's Telea inpainting). Metrics, each with its 95% interval:
  l1 in the hole (x100), PSNR, SSIM       on pixels
  seam                                    the jump across the hole's edge over that in the photo
  perceptual and Frechet distance         on features of EfficientNet-Lite0, whose weights come in a package: per
                                          photo and between distributions; not comparable with LPIPS and FID
  U-IDS, P-IDS                            how often a linear classifier of the same features takes photos and
                                          composites for each other; needs more photos than features, 1280
  identity distance (--identity)          between face embeddings: whether it is still the same person
  LPIPS, FID (--lpips-weights, ...)       the published ones, with their networks' weights; with FID also U-IDS
                                          and P-IDS on InceptionV3, from 2049 photos on
over the whole photo and around the hole, and by hole size. With several runs, or steps of one run (RUN@STEP), also
the ratio of each to the first. Under torchrun the ranks share the photos.

mask sets (--masks): box (sides from the run's holes), centre, freeform-thin, freeform-medium, freeform-thick.
published protocols (--protocol), masks by other people's rules, for comparisons with published results; what each
can be compared with is in docs/evaluation.md:
  mmagic-box, mmagic-irregular            mmagic's for Global&Local and for partial convolutions
  centre                                  a square of half the side in the middle
  irregular-1-10, -10-20, ... -50-60      strokes that cover these percentages of the photo
  lama-thin, lama-medium, lama-thick      LaMa's
Results with equal digests used equal holes.

examples:
  glci evaluate runs/faces64 --data shards/val
  glci evaluate runs/faces64@820 runs/faces64 --data shards/val --masks freeform-medium
  glci evaluate runs/faces256 --data shards/val --protocol mmagic-box
  torchrun --nproc-per-node 8 -m glci_dist evaluate runs/faces160 --data shards/val --identity
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate`."""
    parser = subparsers.add_parser("evaluate", help="measure runs' completions", description=_HELP)
    parser.add_argument("runs", metavar="RUN[@STEP]", nargs="+", help="the run's folder, such as runs/faces64")
    parser.add_argument(
        "--data", dest="shards", required=True, metavar="SHARDS", help="folder or url of held-out shards"
    )
    parser.add_argument("--masks", default=None, metavar="SET", help="the frozen set of holes (box)")
    parser.add_argument("--protocol", default=None, metavar="NAME", help="in place of --masks, a published protocol")
    parser.add_argument("--photos", type=int, default=None, metavar="N", help="only the first N photos")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="photos completed at a time (32)")
    parser.add_argument(
        "--resamples", type=int, default=200, metavar="N", help="bootstrap resamples; 0: no intervals (200)"
    )
    parser.add_argument("--identity", action="store_true", help="identity distance (pip install 'glci-dist[identity]')")
    fid, lpips = "pt_inception-2015-12-05-6726825d.pth", "alexnet-owt-7be5be79.pth"
    parser.add_argument("--fid-weights", type=Path, metavar="FILE", help=f"FID with these weights, {fid}")
    parser.add_argument("--lpips-weights", type=Path, metavar="FILE", help=f"LPIPS with these weights, {lpips}")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="where to write (RUN/evaluation)")
    parser.set_defaults(run=_evaluate, is_for_ranks=True)


def _evaluate(parsed: argparse.Namespace) -> int:
    from glci_dist.evaluation.evaluate_runs import EvaluationRequest, evaluate_runs

    evaluate_runs(EvaluationRequest(**{each.name: getattr(parsed, each.name) for each in fields(EvaluationRequest)}))
    return 0
