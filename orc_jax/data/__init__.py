"""The data sets, by name."""

from orc_jax.data import cifar, decode, digits, folder, idx, tfds
from orc_jax.data.folder import Listing
from orc_jax.data.host import ALONE, Host
from orc_jax.data.images import Dataset, Images, from_arrays, hold_out, subsample
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.errors import unknown
from orc_jax.extension import import_name, is_import_name

__all__ = [
    "Dataset",
    "Host",
    "Images",
    "from_arrays",
    "hold_out",
    "load",
    "load_test",
    "subsample",
]

CIFAR = ("cifar10", "cifar100")
FOLDERS = ("tiny_imagenet", "imagenet", "folder")
TFDS = "tfds:"  # prefix of the names of TensorFlow Datasets' builders
OF_ONE_SIZE = ("digits", *CIFAR, *idx.NAMES)
NAMES = (*OF_ONE_SIZE, *FOLDERS)


def load(config, host: Host = ALONE, streamed: bool | None = None, bits: int = 0) -> Dataset:
    """Load the data set that `config.data` names.

    Args:
      config: the whole config.
      host: the program that loads the data set.
      streamed: whether encoded images are left encoded, to be decoded when they are used; None
        to leave them encoded if the decoded images would not fit into memory.
      bits: bits that the levels of 16-bit images have; 0 to find out.

    Raises:
      UserError: the name is unknown, or files of the data set are missing or corrupt.
    """
    data = config.data
    if data.name == "digits":
        return digits.load()
    if data.name in idx.NAMES:
        return idx.load(data.name, data.dir)
    if is_own(data.name):
        return _load_own(config)
    if _is_archive(data):
        return cifar.load(data.name, data.dir)
    return decode.load(data, _listing(data, host), host, streamed, config.seed, bits)


def load_test(
    config, class_names: tuple[str, ...], images: Preprocessing, streamed: bool, host: Host = ALONE
) -> Dataset:
    """Load only the test images of a data set that `load` has loaded before.

    No training images are read, unless the test images are held out from them.

    Args:
      config: the whole config.
      class_names: names of the classes, in the order of their indices.
      images: preprocessing of the images.
      streamed: whether encoded images are left encoded.
      host: the program that loads the data set.

    Returns:
      The data set, whose `train` is None.

    Raises:
      UserError: the name is unknown, or files of the data set are missing or corrupt.
    """
    data = config.data
    if data.name == "digits":
        return digits.load()._replace(train=None)
    if data.name in idx.NAMES:
        return idx.load(data.name, data.dir, test_only=True)
    if is_own(data.name):
        return Dataset(None, _load_own(config).test, class_names)
    if _is_archive(data):
        return cifar.load(data.name, data.dir, test_only=True)
    listing = _listing(data, host, class_names)
    size, bits = images.image_shape[0], images.bits
    test = decode.load_test(data, listing, host, size, streamed, bits)
    return Dataset(None, test, class_names, bits=bits)


def is_own(name: str) -> bool:
    """Return whether a name is that of a user's own function, "package.module:load".

    Args:
      name: name of a data set.
    """
    return is_import_name(name) and not name.startswith(TFDS)


def _load_own(config) -> Dataset:
    """Call a user's own function, which maps the config to arrays as `from_arrays` takes them."""
    arrays = import_name("data set", config.data.name)(config)
    return from_arrays(arrays, f"what {config.data.name} returns")


def _is_archive(data) -> bool:
    """Return whether to load the data set from CIFAR's original archives.

    This also holds where no form of CIFAR is found, so that the error names the archives.
    """
    if data.name not in CIFAR:
        return False
    return cifar.is_there(data.name, data.dir) or not tfds.is_prepared(data.name, data.dir)


def _listing(data, host, class_names=()) -> Listing:
    """List the encoded images; given class names, only those that the test split is made of."""
    if data.name in CIFAR:
        return tfds.find(data.name, data.dir, host, class_names)
    if data.name in FOLDERS:
        return folder.find(data.dir, class_names, data.on_error)
    if data.name.startswith(TFDS):
        return tfds.find(data.name.removeprefix(TFDS), data.dir, host, class_names)
    raise unknown("data set", data.name, NAMES)
