"""Download CIFAR-100 (169 MB; resumed, verified, never half there)."""

from _command import main

if __name__ == "__main__":
    main("cifar100", __doc__)
