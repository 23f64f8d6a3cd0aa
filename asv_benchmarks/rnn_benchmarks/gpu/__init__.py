"""``make gpu``: everything that only a GPU can say, by one command within minutes, into one folder."""
