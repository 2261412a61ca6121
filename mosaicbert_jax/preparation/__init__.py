"""From text to a data set on disk: the command `prepare`."""
