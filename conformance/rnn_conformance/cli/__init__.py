"""The command ``rnn-backends``, one file a command."""
