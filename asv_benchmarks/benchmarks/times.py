"""Times: over resets, over shapes, one step, construction, import."""

from .common import DENSE, DEVICE, OURS, RESETS, S2, SHAPES, STEPS, TORCHRL, case, cases, refuse


class Timed:
    """Few calls, each timed; building the case has warmed it up."""

    version = "1"
    timeout = 300
    number = 1
    rounds = 1
    warmup_time = 0.0
    repeat = (2, 25, 3.0)
    min_run_count = 1


class OverResets(Timed):
    """The tensor interface at S2, over reset rates. nn.LSTM is dense and has none."""

    params = ([*OURS, DENSE], RESETS)
    param_names = ("backend", "resets")

    def setup(self, backend, resets):
        """Bind the cases, which are built once."""
        self.forward = case(backend, S2, resets, "forward", "output")
        self.train = case(backend, S2, resets, "train", "output")

    def time_forward(self, backend, resets):
        """No gradients."""
        self.forward()

    def time_forward_backward(self, backend, resets):
        """Output, then all gradients."""
        self.train()


class OverShapes(Timed):
    """The tensor interface at 3 % resets, over shapes."""

    params = ([*OURS, DENSE], SHAPES)
    param_names = ("backend", "shape")

    def setup(self, backend, shape):
        """Bind the cases, which are built once."""
        self.forward = case(backend, shape, "0.03", "forward", "output")
        self.train = case(backend, shape, "0.03", "train", "output")

    def time_forward(self, backend, shape):
        """No gradients."""
        self.forward()

    def time_forward_backward(self, backend, shape):
        """Output, then all gradients."""
        self.train()


class ModuleOverResets(Timed):
    """LSTMModule over a TensorDict at S2, over reset rates, ours and TorchRL's."""

    params = ([*OURS, *TORCHRL], RESETS)
    param_names = ("backend", "resets")

    def setup(self, backend, resets):
        """Bind the case, which is built once."""
        self.train = case(backend, S2, resets, "train", "module")

    def time_forward_backward(self, backend, resets):
        """TensorDict in, TensorDict out, then all gradients."""
        self.train()


class ModuleOverShapes(Timed):
    """LSTMModule over a TensorDict at 3 % resets, ours and TorchRL's. S3 is the case of TorchRL's own benchmark."""

    params = ([*OURS, *TORCHRL], SHAPES)
    param_names = ("backend", "shape")
    repeat = (1, 25, 3.0)  # TorchRL's pad takes half a minute a call at S3

    def setup(self, backend, shape):
        """Bind the case, which is built once."""
        self.train = case(backend, shape, "0.03", "train", "module")

    def time_forward_backward(self, backend, shape):
        """TensorDict in, TensorDict out, then all gradients."""
        self.train()


class Acting(Timed):
    """One step without gradients: LSTMModules over a TensorDict, and a bare nn.LSTM called with T = 1."""

    params = ([*OURS, "torchrl-pad", DENSE], STEPS)
    param_names = ("backend", "shape")
    repeat = (20, 2000, 2.0)

    def setup(self, backend, shape):
        """Bind the case, which is built once."""
        self.step = case(backend, shape, "0", "step", "module")

    def time_step(self, backend, shape):
        """One step."""
        self.step()


class Construction(Timed):
    """Making an LSTMModule."""

    params = ([*OURS, "torchrl-pad"],)
    param_names = ("backend",)
    repeat = (10, 500, 2.0)

    def setup(self, backend):
        """Import everything, once."""
        refuse(backend, "module")

    def time_lstm_module(self, backend):
        """Parameters are drawn and the backend is resolved."""
        cases.module_named(backend, cases.SHAPES["S5"], DEVICE)


class Import:
    """Importing, in a fresh process."""

    version = "1"
    rounds = 1
    repeat = (3, 5, 20.0)
    number = 1

    def timeraw_rnn_backends(self):
        """With torch."""
        return "import rnn_backends"

    def timeraw_rnn_backends_after_torch(self):
        """Ours alone, after its dependencies."""
        return "import rnn_backends", "import torch, tensordict.nn, pluggy"

    def timeraw_torch(self):
        """torch alone."""
        return "import torch"
