"""Verify scikit-learn's bundled digits: nothing is downloaded."""

import needsaug_lite.data as data

if __name__ == "__main__":
    splits = data.load("digits")
    print(
        "digits come with scikit-learn, nothing is downloaded: "
        f"{len(splits.train)} training and {len(splits.test)} test images of 8 x 8, "
        f"SHA-256 of all parts {splits.checksum()}"
    )
