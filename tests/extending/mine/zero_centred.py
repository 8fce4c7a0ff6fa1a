"""A penalty: R2, the squared norm of the discriminators' gradient on completed photos (Mescheder et al., ICML 2018)."""

from torch import Tensor

from glci_dist.extensions import Penalty, PenaltyInputs


class R2(Penalty):
    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        return inputs.gradients(inputs.completed, inputs.completed_corners).square().sum((1, 2, 3)) / 2
