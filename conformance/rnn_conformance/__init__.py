"""The conformance suite: which laws hold for an LSTM backend, said backend by backend."""
