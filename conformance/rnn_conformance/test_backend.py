"""What ``pytest --pyargs rnn_conformance --rnn-backend NAME`` collects."""

from .pytest_plugin import laws

test_backend = laws()
