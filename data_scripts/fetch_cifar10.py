"""Download CIFAR-10 (170 MB; resumed, verified, never half there)."""

from _command import main

if __name__ == "__main__":
    main("cifar10", __doc__)
