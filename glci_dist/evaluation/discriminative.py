"""U-IDS and P-IDS: how often a linear classifier of features takes photos and composites for each other.

Zhao et al., "Large Scale Image Completion via Co-Modulated Generative Adversarial Networks", ICLR 2021: a linear
support vector machine is fitted to the features of all photos and all composites. U-IDS is the share of both that it
gets wrong, 0.5 at best; P-IDS the share of composites that look more like photos to it than their own photos do.
"""

from __future__ import annotations

import numpy as np

SCORES = {"frechet": ("u_ids", "p_ids"), "fid": ("inception_u_ids", "inception_p_ids")}
"""Names of U-IDS and P-IDS by the Frechet distance whose features they are computed on: over the whole photo, as
published."""
_NETWORKS = {"frechet": "EfficientNet-Lite0", "fid": "InceptionV3"}


def why_left_out(frechet_name: str, photos: int, features: int) -> str | None:
    """Why the scores of so many photos would mean nothing; None: they mean something.

    Up to about as many photos as features, two sets of points can be parted by a plane whatever they are (Cover,
    1965). The classifier is tested on what it was fitted to, so that the scores would then be those of the number of
    photos and not of the completions.
    """
    if photos > features:
        return None
    return (
        f"U-IDS and P-IDS ({_NETWORKS[frechet_name]}) are left out: a linear classifier of {features} features can "
        f"part any {photos} photos from their composites; they need more than {features} photos, the more the better"
    )


def discriminative_scores(composites: np.ndarray, photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """U-IDS and P-IDS as one value per photo, whose means they are: two of (N,), from features (N, D) each.

    A photo's value of U-IDS is the share of errors on itself and its composite. The classifier is the published one:
    scikit-learn's LinearSVC with ``dual=False``, photos the positive class; nothing in it is random.
    """
    # Imported here: it takes a second.
    from sklearn.svm import LinearSVC

    classifier = LinearSVC(dual=False)
    classifier.fit(np.concatenate([photos, composites]), np.repeat([1, 0], len(photos)))
    real, completed = classifier.decision_function(photos), classifier.decision_function(composites)
    return ((real <= 0).astype(float) + (completed > 0)) / 2, (completed > real).astype(float)
