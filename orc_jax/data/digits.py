"""scikit-learn's handwritten digits: 1,797 real 8×8 images, which are part of that package."""

import numpy as np

from orc_jax.data.images import Dataset, Images


def load() -> Dataset:
    """Load 1,437 training and 360 test images, in a fixed and stratified split."""
    # Imported here because the import takes a second, and most runs do not need it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    # The grey levels are 0 to 16; uint8 images have 0 to 255.
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    return Dataset(
        Images(images[train], labels[train]),
        Images(images[test], labels[test]),
        tuple(str(digit) for digit in range(10)),
    )
