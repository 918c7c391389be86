"""The figures that the book and the command line share."""
