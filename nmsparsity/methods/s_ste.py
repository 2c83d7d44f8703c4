"""S-STE: a continuous soft threshold instead of a mask, with a fixed scale."""

from torch import Tensor

from nmsparsity.methods.base import Method, Stage, method


@method("s_ste")
class SSTE(Method):
    """The sparse weight is a continuous function of the dense one: nothing jumps, no lambda.

    In every group the largest magnitude that is pruned is taken from those that are kept,
    S(w) = sign(w) * max(|w| - t, 0), and the whole is scaled by a number per weight that is
    computed once, at the start: beta = <w, S(w)> / <S(w), S(w)>, the best fit of beta * S(w) to w.
    A weight that is about to be pruned has become small before. The gradient at beta * S(w) goes
    to the dense weight as it is (arXiv 2409.09099, for 2:4; here for any N:M). At most N of a
    group are nonzero, fewer where magnitudes are equal.

    A weight written from outside is a new start: it gets a new beta.
    """

    shows_mask = True

    def start(self, dense: Tensor, mask: Tensor, stage: Stage) -> None:
        """Beta, a sum over the whole weight, in fp32."""
        soft, dense = _soft(dense, mask, stage).float(), dense.float()
        fit, size = (float(stage.total((x * soft).sum())) for x in (dense, soft))
        stage.state["scale"] = fit / size if size else 1.0

    def effective(self, dense: Tensor, mask: Tensor, stage: Stage) -> Tensor:
        return _soft(dense, mask, stage) * stage.state["scale"]


def _soft(dense: Tensor, mask: Tensor, stage: Stage) -> Tensor:
    threshold = stage.largest(dense.abs().masked_fill(mask, 0.0))
    return (dense - dense.sign() * threshold).where(mask, 0.0)
