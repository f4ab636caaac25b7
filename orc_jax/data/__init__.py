"""Where images come from: one registry of data sets."""

from orc_jax.data import cifar, decode, digits, folder, tfds
from orc_jax.data.folder import Listing
from orc_jax.data.host import ALONE, Host
from orc_jax.data.images import Dataset, Images, from_arrays, hold_out, subsample
from orc_jax.errors import UserError, unknown
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
TFDS = "tfds:"  # before the name of any builder of TensorFlow Datasets
OF_ONE_SIZE = ("digits", *CIFAR)
NAMES = (*OF_ONE_SIZE, *FOLDERS)


def load(config, host: Host = ALONE, streamed: bool | None = None) -> Dataset:
    """The data set that `config.data` names.

    Args:
      config: the whole config.
      host: the program that loads it.
      streamed: whether encoded images stay as they are; None: if they do not fit the memory.

    Raises:
      UserError: unknown name, or its files are missing or corrupt.
    """
    data = config.data
    if data.name == "digits":
        return digits.load()
    if is_own(data.name):
        return _load_own(config)
    if _is_archive(data):
        return cifar.load(data.name, data.dir)
    return decode.load(data, _listing(data, host), host, streamed)


def load_test(
    config, class_names: tuple[str, ...], size: int, streamed: bool, host: Host = ALONE
) -> Dataset:
    """Only the test images of a data set that `load` gave before: no training image is read.

    Args:
      config: the whole config.
      class_names: in the order of their indices.
      size: height and width of the images.
      streamed: whether encoded images stay as they are.
      host: the program that loads them.

    Raises:
      UserError: unknown name, or its files are missing or corrupt.
    """
    data = config.data
    if data.name == "digits":
        return digits.load()._replace(train=None)
    if is_own(data.name):
        return Dataset(None, _load_own(config).test, class_names)
    if _is_archive(data):
        return cifar.load(data.name, data.dir, test_only=True)
    listing = _listing(data, host, class_names)
    return Dataset(None, decode.load_test(data, listing, host, size, streamed), class_names)


def is_own(name: str) -> bool:
    """Return whether a data set is a function of the user's own, "package.module:load"."""
    return is_import_name(name) and not name.startswith(TFDS)


def _load_own(config) -> Dataset:
    """Call a function of the user's own: config → arrays, as `from_arrays` takes them."""
    arrays = import_name("data set", config.data.name)(config)
    if not isinstance(arrays, tuple) or len(arrays) != 4:
        raise UserError(
            f"{config.data.name} returns {type(arrays).__name__}, expected a tuple: (train images, "
            "train labels, test images, test labels)"
        )
    return from_arrays(arrays[:2], arrays[2:])


def _is_archive(data) -> bool:
    """Whether it is CIFAR in its authors' form; where it is in none, that is the one to name."""
    if data.name not in CIFAR:
        return False
    return cifar.is_there(data.name, data.dir) or not tfds.is_prepared(data.name, data.dir)


def _listing(data, host, class_names=()) -> Listing:
    """The encoded images; with the classes' names given, those that the test split is made of."""
    if data.name in CIFAR:
        return tfds.find(data.name, data.dir, host, class_names)
    if data.name in FOLDERS:
        return folder.find(data.dir, class_names)
    if data.name.startswith(TFDS):
        return tfds.find(data.name.removeprefix(TFDS), data.dir, host, class_names)
    raise unknown("data set", data.name, NAMES)
