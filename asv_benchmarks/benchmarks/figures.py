"""Tracked figures: R and Q, memory, error, and what compiling costs, all of rnn_benchmarks.figures."""

from .common import OURS, RESETS, S2, SHAPES, TORCHRL, figures, refuse, tracked

SMALL = [shape for shape in SHAPES if not shape.startswith("S3")]


class Figure:
    """One number a combination."""

    version = "1"
    timeout = 300
    unit = "ratio"


class R(Figure):
    """R of ``rnn_benchmarks.figures.R_group``, at 3 % resets."""

    params = (OURS, SHAPES, list(figures.KINDS))
    param_names = ("backend", "shape", "reads")

    def setup(self, backend, shape, reads):
        """Skip what cannot be measured."""
        refuse(backend, figures.KINDS[reads])

    def track_R_at_3_percent(self, backend, shape, reads):
        """1 means that resets are free."""
        return tracked(figures.measure_R, backend, shape, "0.03", figures.KINDS[reads])


class ROverResets(Figure):
    """R at S2, over reset rates, output only."""

    params = (OURS, RESETS)
    param_names = ("backend", "resets")

    def setup(self, backend, resets):
        """Skip what cannot be measured."""
        refuse(backend)

    def track_R_at_S2(self, backend, resets):
        """1 means that resets are free."""
        return tracked(figures.measure_R, backend, S2, resets)


class Q(Figure):
    """Q of ``rnn_benchmarks.figures.Q_group``, against TorchRL's best CPU backend. S3 is too slow and only timed."""

    params = (OURS, SMALL, ["0", "0.03"])
    param_names = ("backend", "shape", "resets")

    def setup(self, backend, shape, resets):
        """Skip what cannot be measured."""
        for name in (backend, *TORCHRL):
            refuse(name, "module")

    def track_Q(self, backend, shape, resets):
        """Above 1 ours is faster."""
        return tracked(figures.measure_Q, backend, shape, resets, TORCHRL)


class Bounded(Figure):
    """Memory and error at 3 % resets."""

    params = (OURS, SHAPES)
    param_names = ("backend", "shape")

    def setup(self, backend, shape):
        """Skip what cannot be measured."""
        refuse(backend)

    def track_peak_memory_over_dense(self, backend, shape):
        """Peak memory of tensors, forward and backward, above the inputs."""
        return tracked(figures.memory_over_dense, backend, shape, "0.03")

    def track_error(self, backend, shape):
        """The largest absolute error of the output, against float64."""
        return tracked(figures.error, backend, shape, "0.03")

    track_error.unit = "absolute error"


class Compiling(Figure):
    """In a fresh process without the compiler's cache."""

    params = (["compile"],)
    param_names = ("backend",)
    unit = "seconds"

    def setup(self, backend):
        """Skip what cannot be measured."""
        refuse(backend)

    def track_first_call_T16(self, backend):
        """Forward and backward, with compilation."""
        return figures.first_call(backend, 16)["seconds"]

    def track_first_call_T512(self, backend):
        """Forward and backward, with compilation."""
        return figures.first_call(backend, 512)["seconds"]

    def track_recompilations(self, backend):
        """Recompilations over T = 16 to 512, after the first call."""
        return figures.first_call(backend, 16, (32, 64, 128, 256, 512))["recompilations"]

    track_recompilations.unit = "graphs"
