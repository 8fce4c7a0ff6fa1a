"""Identity distance: whether a completed face is still the same person, by dlib's face embedding."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from glci_dist.errors import UserError
from glci_dist.evaluation.feature_metrics import WHOLE_PHOTO, FeatureMetric, Features
from glci_dist.evaluation.metrics import to_uint8

_LOOKED_AT = 256
"""px; photos are enlarged to this size for the face detector, which needs faces of 80 px."""
_CHIP, _MARGIN = 150, 0.25
"""The embedding's input size, px, and the margin around the face that it was trained with."""


class Identity(FeatureMetric):
    """Distance between the embeddings (128 numbers) of a photo and of its composite: 0 to about 1.4.

    Below 0.6 dlib takes two photos for the same person's.

    The face is found and aligned on the photo, and the composite is cropped at the same place. A photo in which dlib
    finds no face has the value nan. dlib holds the GIL, so this runs in processes, one per core.
    """

    distance_name = "identity"
    regions = (WHOLE_PHOTO,)
    for_baselines = False

    def __init__(self, processes: int) -> None:
        """Raises UserError where the packages are missing."""
        if find_models() is None or importlib.util.find_spec("dlib") is None:
            raise UserError("identity needs dlib-bin and face-recognition-models: pip install 'glci-dist[identity]'")
        self._processes = processes
        self._pool = self._start()

    def extract(self, pictures: Tensor, photos: Tensor) -> Features:
        parts = min(self._processes, len(pictures))
        pairs = zip(np.array_split(to_uint8(pictures), parts), np.array_split(to_uint8(photos), parts), strict=True)
        columns = list(zip(*pairs, strict=True))
        try:
            found = list(self._pool.map(_embed, *columns))
        except BrokenProcessPool:
            # Tried once more: it may have been killed because memory was short at that moment.
            self._pool = self._start()
            try:
                found = list(self._pool.map(_embed, *columns))
            except BrokenProcessPool as error:
                raise UserError(
                    "a process of --identity was killed twice (out of memory, as a rule): give the evaluation more "
                    "memory or fewer cores, or leave --identity out"
                ) from error
        return Features([torch.from_numpy(np.concatenate(found))])

    def _start(self) -> ProcessPoolExecutor:
        try:
            return ProcessPoolExecutor(self._processes, get_context("forkserver"))
        except OSError as error:
            raise UserError(
                f"the processes of --identity cannot start ({error.strerror}): look at /dev/shm and the limits on open "
                "files and processes, or leave --identity out"
            ) from error

    def compare(self, one: Features, other: Features) -> Tensor:
        return (one.maps[0] - other.maps[0]).square().sum(1).sqrt()

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


def find_models() -> Path | None:
    """The folder of the package's models. It is not imported, as it needs a removed part of setuptools."""
    found = importlib.util.find_spec("face_recognition_models")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "models"


@cache
def _networks() -> tuple[Any, Any, Any]:
    """This process's face detector, landmark predictor and embedding."""
    import dlib

    models = find_models()
    assert models is not None
    return (
        dlib.get_frontal_face_detector(),
        dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat")),
        dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat")),
    )


def _embed(pictures: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Embeddings (N, 128) of pictures, uint8 (N, H, W, 3), cropped where the photos have their faces."""
    import dlib

    detector, predictor, network = _networks()
    found = np.full((len(pictures), 128), np.nan)
    for number, (picture, photo) in enumerate(zip(pictures, photos, strict=True)):
        large = _enlarged(photo)
        faces = detector(large, 0)
        if not faces:
            continue
        face = max(faces, key=lambda each: each.area())
        landmarks = predictor(large, face)
        chip = dlib.get_face_chip(_enlarged(picture), landmarks, _CHIP, _MARGIN)
        found[number] = network.compute_face_descriptor(chip)
    return found


def _enlarged(picture: np.ndarray) -> np.ndarray:
    if min(picture.shape[:2]) >= _LOOKED_AT:
        return np.ascontiguousarray(picture)
    return cv2.resize(picture, (_LOOKED_AT, _LOOKED_AT), interpolation=cv2.INTER_CUBIC)
