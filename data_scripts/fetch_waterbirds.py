"""Download Waterbirds (resumed, its numbers of images checked, never half there).

No checksum of the archive is published: after unpacking, every image must be there and
every group must have its published number of images.
"""

from _command import main

if __name__ == "__main__":
    main("waterbirds", __doc__)
