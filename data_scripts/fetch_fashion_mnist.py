"""Download Fashion-MNIST (31 MB; resumed, verified, never half there)."""

from _command import main

if __name__ == "__main__":
    main("fashion_mnist", __doc__)
