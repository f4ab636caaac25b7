"""scikit-learn's handwritten digits: 1,797 real 8×8 images, part of the package."""

import numpy as np

from orc_jax.data.images import Dataset, Images


def load() -> Dataset:
    """1,437 training and 360 test images; the split is fixed and stratified."""
    # Imported here: it takes a second, and most runs need none of it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    # Grey levels 0 to 16, as full-range uint8.
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
