"""Tracked figures: R and Q, memory, error, and what compiling costs. docs/performance.md defines them."""

from .common import OURS, RESETS, S2, SHAPES, TORCHRL, figures, refuse, tracked

SMALL = [shape for shape in SHAPES if not shape.startswith("S3")]


class Figure:
    """One number a combination."""

    version = "1"
    timeout = 300
    unit = "ratio"


class R(Figure):
    """Time over torch's dense nn.LSTM without resets, forward and backward, in turn in one process."""

    params = (OURS, SHAPES, list(figures.KINDS))
    param_names = ("backend", "shape", "reads")

    def setup(self, backend, shape, reads):
        """Refuse what cannot be measured."""
        refuse(backend, figures.KINDS[reads])

    def track_R_at_3_percent(self, backend, shape, reads):
        """1 means that resets are free."""
        return tracked(figures.over_dense, backend, shape, "0.03", figures.KINDS[reads])


class ROverResets(Figure):
    """R at S2, over reset rates, output only."""

    params = (OURS, RESETS)
    param_names = ("backend", "resets")

    def setup(self, backend, resets):
        """Refuse what cannot be measured."""
        refuse(backend)

    def track_R_at_S2(self, backend, resets):
        """1 means that resets are free."""
        return tracked(figures.over_dense, backend, S2, resets, "output")


class Q(Figure):
    """The time of TorchRL's best CPU backend over ours, the same TensorDict. S3 is among the times: it is too slow."""

    params = (OURS, SMALL, ["0", "0.03"])
    param_names = ("backend", "shape", "resets")

    def setup(self, backend, shape, resets):
        """Refuse what cannot be measured."""
        for who in (backend, *TORCHRL):
            refuse(who, "module")

    def track_Q(self, backend, shape, resets):
        """Above 1 ours is faster."""
        return tracked(figures.under_torchrl, backend, shape, resets, TORCHRL)


class Bounded(Figure):
    """Memory and error at 3 % resets."""

    params = (OURS, SHAPES)
    param_names = ("backend", "shape")

    def setup(self, backend, shape):
        """Refuse what cannot be measured."""
        refuse(backend)

    def track_peak_memory_over_dense(self, backend, shape):
        """Of tensors, forward and backward, above the inputs."""
        return tracked(figures.memory_over_dense, backend, shape, "0.03")

    def track_error(self, backend, shape):
        """The output's largest, against float64."""
        return tracked(figures.error, backend, shape, "0.03")

    track_error.unit = "absolute error"


class Compiling(Figure):
    """In a fresh process without the compiler's cache."""

    params = (["compile"],)
    param_names = ("backend",)
    unit = "seconds"

    def setup(self, backend):
        """Refuse what cannot be measured."""
        refuse(backend)

    def track_first_call_T16(self, backend):
        """Forward and backward, compilation in it."""
        return figures.first_call(backend, 16)["seconds"]

    def track_first_call_T512(self, backend):
        """Forward and backward, compilation in it."""
        return figures.first_call(backend, 512)["seconds"]

    def track_recompilations(self, backend):
        """Over T = 16 to 512, after the first call."""
        return figures.first_call(backend, 16, (32, 64, 128, 256, 512))["again"]

    track_recompilations.unit = "graphs"
