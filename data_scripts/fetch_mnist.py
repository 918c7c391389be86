"""Download MNIST (12 MB; resumed, verified, never half there)."""

from _command import main

if __name__ == "__main__":
    main("mnist", __doc__)
