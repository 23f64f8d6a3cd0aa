"""``vmap``: plain Python over time, for ``torch.func``: ensembles, per-sample gradients, double backward, jvp."""

from rnn_backends import LSTMBackend, Trait, hookimpl
from rnn_backends.authoring import unroll

contract_version = 1

TRAITS = frozenset(
    {
        Trait.VMAP,
        Trait.FULLGRAPH,
        Trait.SCRIPT,
        Trait.EXPORT,
        Trait.DOUBLE_BACKWARD,
        Trait.FORWARD_AD,
        Trait.CELL_STATES,
    }
)


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The plain unroll as it is."""
    return LSTMBackend("vmap", unroll, traits=TRAITS)
