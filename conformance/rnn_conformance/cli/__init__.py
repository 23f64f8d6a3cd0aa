"""The command ``rnn-backends``, one file per subcommand."""
