"""Folders of image files, made here: layouts, kinds of files, faults, the cache, the command."""

import collections
import os
import shutil
import struct
import unicodedata

import numpy as np
import pytest
from conftest import QUICK, load_data, run_command
from PIL import Image, ImageOps

import orc_jax
from orc_jax import config as configs
from orc_jax.commands import predict
from orc_jax.data import decode, folder, load_test, preprocessing, stream
from orc_jax.errors import UserError
from orc_jax.prepare import prepare
from orc_jax.runtime import display


def picture(seed, size=(12, 10)):
    """RGB noise around a colour of its own."""
    rng = np.random.default_rng(seed)
    width, height = size
    pixels = rng.integers(0, 40, (height, width, 3)) + rng.integers(0, 200, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(len(str(path)))).save(path, **options)


def config_of(root, **changes):
    config = configs.default_config("dml")
    config.peers = (configs.peer("resnet8"), configs.peer("resnet8"))
    config.batch_size = 4
    config.data.update(name="folder", dir=str(root), size=8, cache=str(root.parent / "cache"))
    config.data.update(changes)
    return config


@pytest.fixture
def root(tmp_path):
    """Two classes, four training and two validation images each; one of them lies deeper."""
    root = tmp_path / "images"
    for i, name in enumerate(("cat", "dog")):
        for j in range(4):
            place = root / "train" / name / ("more" if j == 3 else ".")
            save(place / f"{j}.png", picture(10 * i + j))
        for j in range(2):
            save(root / "val" / name / f"{j}.JPEG", picture(100 + 10 * i + j))
    return root


def test_train_and_val_nested_or_flat(root):
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / ".hidden").mkdir()
    listing = folder.find(root)
    assert listing.class_names == ("cat", "dog")
    assert listing.train.paths[3] == "train/cat/more/3.png"
    assert listing.train.labels.tolist() == [0] * 4 + [1] * 4
    assert listing.test.labels.tolist() == [0, 0, 1, 1]
    dataset = load_data(config_of(root))
    assert dataset.train.images.shape == (8, 8, 8, 3) and dataset.train.images.dtype == np.uint8
    expected = decode.decode(root / "train" / "dog" / "1.png", 8)
    np.testing.assert_array_equal(dataset.train.images[5], expected)
    # `test` serves where there is no `val`.
    (root / "val").rename(root / "test")
    assert folder.find(root).test.paths[0] == "test/cat/0.JPEG"


@pytest.mark.parametrize(
    "train, test",
    [
        ("Training", "Testing"),
        ("train", "Test"),
        ("seg_train", "seg_test"),
        ("train_images", "eval-images"),
        ("TRAIN", "Validation"),
        ("seg_train/seg_train", "seg_test/seg_test"),
    ],
)
def test_names_that_people_give_to_splits(root, train, test):
    expected = folder.find(root)
    for old, new in (("train", train), ("val", test)):
        (root / old).rename(root / "moved")
        (root / new).parent.mkdir(exist_ok=True)
        (root / "moved").rename(root / new)
    found = folder.find(root)
    assert found.class_names == ("cat", "dog")
    assert [p.removeprefix(train) for p in found.train.paths] == [
        p.removeprefix("train") for p in expected.train.paths
    ]
    assert len(found.test.labels) == len(expected.test.labels)
    assert folder.find(root, ("cat", "dog")).test.paths == found.test.paths


def test_classes_whose_names_have_words_of_splits(tmp_path):
    for name in ("test_tube", "training-shoe"):
        for i in range(4):
            save(tmp_path / "images" / "train" / name / f"{i}.png")
            save(tmp_path / "flat" / name.replace("training", "running") / f"{i}.png")
    assert folder.find(tmp_path / "images").class_names == ("test_tube", "training-shoe")
    assert folder.find(tmp_path / "flat").class_names == ("running-shoe", "test_tube")


def test_words_of_splits_in_the_names_of_classes_and_splits_alone(tmp_path):
    """`bullet_train` beside `car` is a class; the test images of `seg_test` need no `seg_train`."""
    for name in ("bullet_train", "car"):
        save(tmp_path / "flat" / name / "0.png")
        save(tmp_path / "deep" / name / "a" / "0.png")
        save(tmp_path / "deep" / name / "b" / "0.png")
        save(tmp_path / "seg" / "seg_test" / name / "0.png")
        save(tmp_path / "seg" / "seg_val" / name / "0.png")
    names = ("bullet_train", "car")
    assert folder.find(tmp_path / "flat").class_names == names
    assert folder.find(tmp_path / "deep").class_names == names
    assert folder.find(tmp_path / "flat", names).test is None
    found = folder.find(tmp_path / "seg", names)
    assert found.test.paths == ("seg_test/bullet_train/0.png", "seg_test/car/0.png")


def test_a_test_folder_without_classes_is_left_out(root, capsys):
    """As ImageNet's: the validation images are tested on, as before."""
    expected = folder.find(root)
    save(root / "test" / "ILSVRC2012_test_00000001.JPEG")
    found = folder.find(root)
    assert found.test.paths == expected.test.paths and found.val is None
    assert folder.find(root, ("cat", "dog")).test.paths == expected.test.paths
    load_data(config_of(root))
    assert "test, which has no folders of classes" in " ".join(capsys.readouterr().out.split())


def test_litter_is_passed_over_and_other_files_are_counted(root, capsys):
    expected = folder.find(root)
    for litter in ("__MACOSX/cat", "train/lost+found", "train/@eaDir", "train/.ipynb_checkpoints"):
        save(root / litter / "0.png")
    for name in ("Thumbs.db", "desktop.ini", "._0.png", ".DS_Store"):
        (root / "train" / "cat" / name).write_text("")
    (root / "val" / "bird").mkdir()  # as if it was not there
    for name in ("a.txt", "b.TXT", "c.json", "README"):
        (root / "train" / "dog" / name).write_text("")
    found = folder.find(root)
    assert found.class_names == expected.class_names
    assert found.train.paths == expected.train.paths and found.test.paths == expected.test.paths
    load_data(config_of(root))
    said = "left out 4 files other than images, by suffix: 1 without, 1 .json, 2 .txt"
    assert said in capsys.readouterr().out


def test_an_empty_class_is_left_out_on_request(root, capsys):
    (root / "train" / "bird").mkdir()
    save(root / "val" / "bird" / "0.png")
    assert load_data(config_of(root, on_error="skip")).class_names == ("cat", "dog")
    assert "left out classes without an image: bird" in capsys.readouterr().out


def test_files_of_every_suffix_that_pillow_opens(tmp_path):
    names = ("a.jfif", "b.TIF", "c.tiff", "d.gif", "e.ppm", "f.avif", "g.jpe", "h.pgm")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for file in names:
                image = picture(1, (8, 8))
                save(tmp_path / split / name / file, image.convert("L") if "pgm" in file else image)
    dataset = load_data(config_of(tmp_path, cache=str(tmp_path / "cache")))
    assert len(dataset.train.labels) == 2 * len(names)


@pytest.mark.parametrize("with_train", [True, False])
def test_without_a_second_split_one_is_cut_off(root, with_train):
    shutil.rmtree(root / "val")
    if not with_train:
        for name in ("cat", "dog"):
            (root / "train" / name).rename(root / name)
        (root / "train").rmdir()
    dataset = load_data(config_of(root, test_share=0.25))
    assert np.bincount(dataset.train.labels).tolist() == [3, 3]
    assert np.bincount(dataset.test.labels).tolist() == [1, 1]
    again = load_data(config_of(root, test_share=0.25))
    np.testing.assert_array_equal(again.test.images, dataset.test.images)


def test_tiny_imagenets_own_layout(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n02", "n01"):
        save(root / "train" / name / "images" / f"{name}_0.JPEG")
        (root / "train" / name / f"{name}_boxes.txt").write_text("x\t0\t0\t1\t1\n")
    save(root / "val" / "images" / "val_0.JPEG")
    save(root / "val" / "images" / "val_1.JPEG")
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn01\t0\t0\t1\t1\nval_1.JPEG\tn02\t0\t0\t1\t1\n"
    )
    save(root / "test" / "images" / "test_0.JPEG")
    listing = folder.find(root)
    assert listing.class_names == ("n02", "n01")
    assert listing.train.paths == ("train/n02/images/n02_0.JPEG", "train/n01/images/n01_0.JPEG")
    assert listing.test.paths == ("val/images/val_1.JPEG", "val/images/val_0.JPEG")
    assert listing.test.labels.tolist() == [0, 1]
    (root / "wnids.txt").write_text("n02\nn01")  # no end of line
    assert folder.find(root).class_names == ("n02", "n01")
    shown = folder.find(root, ("n02", "n01"))  # of the test images alone
    assert shown.train is None and shown.test.paths == listing.test.paths
    (root / "wnids.txt").write_text("n02\nn03\n")
    with pytest.raises(UserError, match="'n01' is not in both wnids"):
        folder.find(root)
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn07\t0\t0\t1\t1\n")
    with pytest.raises(UserError, match=r"val_annotations.txt, line 1: 'n07'"):
        folder.find(root)


@pytest.mark.parametrize("below", ["", "images"])
def test_tiny_imagenet_as_scripts_rearrange_it(tmp_path, below):
    """Its validation images in folders of their classes, which are then in sorted order."""
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n02", "n01"):
        save(root / "train" / name / "images" / f"{name}_0.JPEG")
        save(root / "val" / name / below / "val_0.JPEG")
    save(root / "test" / "images" / "test_0.JPEG")
    (root / "wnids.txt").write_text("n02\nn01\n")
    listing = folder.find(root)
    assert listing.class_names == ("n01", "n02") and listing.val is None
    assert listing.train.labels.tolist() == listing.test.labels.tolist() == [0, 1]
    assert folder.find(root, listing.class_names).test.paths == listing.test.paths


def test_every_kind_of_image_becomes_rgb(tmp_path):
    colour = picture(0, (8, 8))
    grey = np.asarray(colour.convert("L"))
    rgb = {
        "a.png": (colour, {}),
        "a.bmp": (colour, {}),
        "a.webp": (colour, {"lossless": True}),
        "alpha.png": (Image.merge("RGBA", (*colour.split(), Image.new("L", (8, 8), 255))), {}),
        "palette.png": (colour.quantize(256), {}),
    }
    for name, (image, options) in rgb.items():
        save(tmp_path / name, image, **options)
        np.testing.assert_array_equal(decode.decode(tmp_path / name, 8), np.asarray(colour), name)
    half = Image.merge("RGBA", (*colour.split(), Image.new("L", (8, 8), 128)))
    save(tmp_path / "half.png", half)
    over_white = np.asarray(colour) * (128 / 255) + 127
    assert np.abs(decode.decode(tmp_path / "half.png", 8) - over_white).max() <= 1
    save(tmp_path / "a.jpg", colour, quality=100, subsampling=0)
    near = decode.decode(tmp_path / "a.jpg", 8).astype(int) - np.asarray(colour)
    assert np.abs(near).max() < 12
    for name, image in (
        ("grey.png", Image.fromarray(grey)),
        ("deep.png", Image.fromarray(grey.astype(np.uint16) * 256 + 7)),
    ):
        save(tmp_path / name, image)
        decoded = decode.decode(tmp_path / name, 8)
        np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=-1), name)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_photos_are_turned_upright(tmp_path, orientation, suffix):
    """As EXIF says: whole, and for random parts of streamed images, in draft mode too."""
    upright = Image.fromarray(np.kron(picture(3, (12, 8)), np.ones((16, 16, 1), np.uint8)))
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # back to how a camera stores it
    stored = upright.transpose(turn[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, image in (("upright", upright), ("stored", stored)):
        options = {"exif": exif} if name == "stored" else {}
        path = tmp_path / f"{name}.{suffix}"
        image.save(path, quality=100, subsampling=0, **options)
    files = [tmp_path / f"{name}.{suffix}" for name in ("upright", "stored")]
    whole = [decode.decode(path, 48, 64).astype(int) for path in files]
    assert abs(whole[0] - whole[1]).max() < 12
    for seed in range(5):
        parts = []
        for path in files:
            with Image.open(path) as image:
                rng = np.random.default_rng(seed)
                parts.append(stream.random_resized_crop(image, 24, rng).astype(int))
        assert abs(parts[0] - parts[1]).max() < 12


def test_a_photo_with_odd_exif_data_is_turned_too(tmp_path):
    """Pillow cannot write a resolution that is text again, and need not."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x011A, 2, 1, 5)
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    exif = head + entries + struct.pack("<I", 0)
    picture(1, (24, 16)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        with pytest.raises(TypeError):
            ImageOps.exif_transpose(image)
        assert decode.rgb(image).size == (16, 24)


def test_images_are_scaled_by_their_shorter_side_and_cropped_to_the_centre(tmp_path):
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 200  # the middle third
    save(tmp_path / "wide.png", Image.fromarray(pixels))
    decoded = decode.decode(tmp_path / "wide.png", 8)
    assert decoded.shape == (8, 8, 3) and (decoded[:, 1:-1] == 200).all()


def test_a_strip_needs_no_memory_and_the_centre_is_as_if_all_was_scaled(tmp_path):
    save(tmp_path / "strip.png", Image.new("RGB", (50_000, 1), (9, 8, 7)))
    assert (decode.decode(tmp_path / "strip.png", 64) == (9, 8, 7)).all()
    image = picture(5, (32, 64))
    for size, resize in ((16, 0), (16, 24), (80, 0)):
        width, height = resize or size, 2 * (resize or size)
        whole = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        expected = np.asarray(whole.crop((left, top, left + size, top + size))).astype(int)
        assert np.abs(np.asarray(decode.fit(image, size, resize)) - expected).max() <= 1


def test_the_size_is_the_images_own_if_they_agree(root):
    with pytest.raises(UserError, match=r"not of one square size .*12×10.*data\.size=64"):
        load_data(config_of(root, size=0))
    for path in root.rglob("*.*"):
        if path.is_file():
            save(path, picture(0, (9, 9)))
    assert load_data(config_of(root, size=0)).image_shape == (9, 9, 3)


def spoil(root):
    """A truncated, an empty and a wrong file; returns their paths."""
    truncated, empty, text = (root / "train" / "cat" / f"{i}.png" for i in range(3))
    truncated.write_bytes(truncated.read_bytes()[:-60])
    empty.write_bytes(b"")
    text.write_text("hello")
    return truncated, empty, text


def test_bad_files_stop_the_run_before_it_begins(root):
    bad = spoil(root)
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(UserError) as error:
            load_data(config_of(root))
        assert str(error.value).startswith("3 of the images cannot be decoded")
        assert all(str(path) in str(error.value) for path in bad)


def test_bad_files_are_left_out_on_request_and_said(root, capsys):
    bad = spoil(root)
    dataset = load_data(config_of(root, on_error="skip"))
    assert dataset.train.labels.tolist() == [0, 1, 1, 1, 1]
    np.testing.assert_array_equal(
        dataset.train.images[0], decode.decode(root / "train/cat/more/3.png", 8)
    )
    said = capsys.readouterr().out
    assert "left out 3 images" in said and all(path.name in said for path in bad)


def test_the_cache_is_keyed_by_the_content(root, monkeypatch):
    first = load_data(config_of(root))
    files = sorted((root.parent / "cache").iterdir())
    assert [path.suffix for path in files] == [".npz"] * 2
    calls = []
    real = decode.decode
    monkeypatch.setattr(decode, "decode", lambda *args: calls.append(args) or real(*args))
    os.utime(root / "train" / "cat" / "0.png", (1, 1))
    again = load_data(config_of(root))
    assert not calls
    np.testing.assert_array_equal(again.train.images, first.train.images)
    save(root / "train" / "cat" / "0.png", picture(99))
    changed = load_data(config_of(root))
    assert len(calls) == 8
    assert (changed.train.images[0] != first.train.images[0]).any()
    assert (changed.train.images[1:] == first.train.images[1:]).all()


def test_a_cache_that_cannot_be_written_and_one_that_is_damaged(root):
    (root.parent / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be kept in .*cache: .*--config\.data\.cache=DIR"):
        load_data(config_of(root, cache=str(root.parent / "file" / "cache")))
    first = load_data(config_of(root))
    for file in (root.parent / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    again = load_data(config_of(root))
    np.testing.assert_array_equal(first.train.images, again.train.images)


def break_folder(root, kind):
    if kind == "absent":
        shutil.rmtree(root)
    elif kind == "empty":
        shutil.rmtree(root / "train")
        (root / "train").mkdir()
    elif kind == "class without images":
        (root / "train" / "bird").mkdir()
    elif kind == "flat val":
        shutil.rmtree(root / "val")
        save(root / "val" / "ILSVRC2012_val_00000001.JPEG")
    elif kind == "class in val alone":
        save(root / "val" / "bird" / "0.png")
    elif kind == "no train":
        (root / "train").rename(root / "practice")
    elif kind == "one class":
        shutil.rmtree(root / "train" / "dog")
        shutil.rmtree(root / "val" / "dog")
    elif kind == "too high":
        (root.parent / "lower").mkdir()
        root.rename(root.parent / "lower" / "images")
        (root.parent / "lower").rename(root)
    elif kind == "two trainings":
        (root / "train").rename(root / "Train")
        shutil.copytree(root / "Train", root / "training")
    elif kind == "link to itself":
        (root / "train" / "cat" / "self").symlink_to(root / "train" / "cat" / "self")
    elif kind == "link to nothing":
        (root / "train" / "cat" / "9.png").symlink_to(root / "nothing")
    elif kind == "loop":
        (root / "train" / "cat" / "loop").symlink_to(root / "train")
    elif kind == "one image, no val":
        shutil.rmtree(root / "val")
        save(root / "train" / "bird" / "0.png")


@pytest.mark.parametrize(
    "kind, message",
    [
        ("absent", "there is no folder"),
        ("empty", "train has no folders of classes"),
        ("class without images", "train/bird has no image file .*on_error=skip leaves"),
        ("one class", r"only one class \(cat\): is data.dir one folder too high"),
        ("too high", r"only one class \(images\): is data.dir one folder too high"),
        ("two trainings", "has several folders of train images: Train, training"),
        ("flat val", "val has images but no folders of classes: move every image"),
        ("class in val alone", "val has the class 'bird', which train does not have"),
        ("no train", "has a folder val, but none named train"),
        ("link to itself", "self cannot be read: Too many levels"),
        ("link to nothing", "9.png cannot be read: No such file"),
        ("loop", "loop is a symbolic link back to .*train"),
        ("one image, no val", "the class 'bird' has too few images"),
    ],
)
def test_folders_that_cannot_be(root, kind, message):
    break_folder(root, kind)
    with pytest.raises(UserError, match=message):
        load_data(config_of(root))


def test_a_folder_that_cannot_be_read(root, monkeypatch):
    """(Root reads everything, so the system's answer is made up.)"""
    real = os.scandir

    def scandir(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="dog cannot be read: Permission denied"):
        folder.find(root)


def test_of_many_bad_files_ten_are_shown_and_all_are_kept(root):
    for i in range(15):
        (root / "train" / "cat" / f"bad{i:02}.png").write_text("hello")
    with pytest.raises(UserError) as error:
        prepare(config_of(root), reports=root.parent / "run")
    message = str(error.value)
    assert message.startswith("15 of the images") and "bad09.png" in message
    assert "bad10.png" not in message and "; and 5 more (all of them are in" in message
    listed = (root.parent / "run" / "damaged.txt").read_text().splitlines()
    assert len(listed) == 15 and "bad14.png" in listed[-1]


@pytest.mark.parametrize("file, limit", [("memory.max", "1000"), ("memory.max", "max")])
def test_memory_is_that_of_the_container(tmp_path, file, limit):
    machine = decode.host_memory(str(tmp_path))
    assert machine > 2**28
    (tmp_path / file).write_text(f"{limit}\n")
    assert decode.host_memory(str(tmp_path)) == (machine if limit == "max" else 1000)
    (tmp_path / file).unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000\n")
    assert decode.host_memory(str(tmp_path)) == 2000
    # On a CPU the copy on the device is in the same memory.
    assert decode.fits_memory(decode.host_memory() // 4, 0.51)
    assert not decode.fits_memory(decode.host_memory() // 4, 0.49)


def test_names_that_are_not_text(root, capsys):
    """Not UTF-8, line breaks, brackets, and an accent in two Unicode forms in train and val."""
    odd = os.fsdecode("caf\u00e9".encode("latin-1"))
    composed, decomposed = (unicodedata.normalize(form, "\u00e9clair") for form in ("NFC", "NFD"))
    for split, cake in (("train", composed), ("val", decomposed)):
        save(root / split / odd / "photo[red]\n.png", picture(40))
        save(root / split / odd / f"{odd}.png", picture(41))
        save(root / split / cake / ":smile:.png", picture(42))
        save(root / split / cake / "b.png", picture(43))
    listing = folder.find(root)
    assert listing.class_names == ("caf\\udce9", "cat", "dog", composed)
    assert np.bincount(listing.test.labels).tolist() == [2, 2, 2, 2]
    names = [listing.train.name(i) for i in range(2)]
    assert [name.rpartition("/")[2] for name in names] == ["caf\\udce9.png", "photo[red]\\n.png"]
    (root / "train" / odd / "bad[bold].png").write_text("hello")
    for memory in (0.5, 1e-9):
        config = config_of(root, memory=memory, on_error="skip")
        dataset = load_data(config)
        assert len(dataset.train.labels) == 12
        dataset.train.checksums()
        with pytest.raises(UserError, match=r"caf\\udce9/bad\[bold\].png \(not an image"):
            load_data(config_of(root, memory=memory))
    capsys.readouterr()
    display.say("photo[red] :smile:")
    shown = predict.as_table([("a[red]\n:smile:", [("[b]", 0.5)])])
    display.show(shown)
    out = capsys.readouterr().out
    assert "photo[red] :smile:" in out and "a[red]\\n:smile:" in out and "[b] 50.00 %" in out


@pytest.mark.parametrize("streamed", [False, True])
def test_levels_of_twelve_bits_are_not_nearly_black(root, streamed):
    grey = np.random.default_rng(0).integers(0, 4096, (8, 8)).astype(np.uint16)
    grey[0, 0] = 4095
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for path in (root / split / name).rglob("*.*"):
                path.unlink()
            save(root / split / name / "a.png", Image.fromarray(grey))
            save(root / split / name / "b.tiff", Image.fromarray(grey // 2))
    dataset = load_data(config_of(root, memory=1e-9 if streamed else 0.5))
    assert dataset.bits == 12
    if streamed:
        split = stream.OnDisk(dataset.test, 0, 1, config_of(root).data, collections.Counter())
        ((images, _),) = stream.evaluation(split, 4)
    else:
        images = dataset.test.images
    for image, levels in zip(images, (grey, grey // 2) * 2, strict=True):
        np.testing.assert_array_equal(image, np.repeat(levels[..., None] >> 4, 3, axis=-1))
    # A run knows it for its test images and for files to predict.
    images = preprocessing.Preprocessing((8, 8, 3), 0, np.zeros(3), np.ones(3), dataset.bits)
    assert preprocessing.from_json(images.to_json()).bits == 12
    again = load_test(config_of(root), dataset.class_names, images, streamed)
    assert again.test.checksums() == dataset.test.checksums()


def test_cmyk_is_shown_as_its_colours(tmp_path):
    colour = Image.new("RGB", (16, 16), (200, 40, 90))
    save(tmp_path / "a.jpg", colour.convert("CMYK"), quality=100)
    save(tmp_path / "a.tiff", colour.convert("CMYK"))
    for name in ("a.jpg", "a.tiff"):
        decoded = decode.decode(tmp_path / name, 8).astype(int)
        assert np.abs(decoded - (200, 40, 90)).max() <= 3


def test_a_decompression_bomb_is_one_line(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(UserError, match="could be decompression bomb") as error:
        load_data(config_of(root))
    assert "\n" not in str(error.value)


def test_places_that_cannot_be_written_are_found_before_anything_is_decoded(root, monkeypatch):
    (root.parent / "file").write_text("")
    config = config_of(root, cache=str(root.parent / "file" / "cache"))
    monkeypatch.setattr(decode, "decode", None)
    with pytest.raises(UserError, match=r"decoded images cannot be kept in .*/file/cache: Not a"):
        prepare(config)
    with pytest.raises(UserError, match=r"the work directory is .*, but .*/file is a file"):
        orc_jax.train(config_of(root), root.parent / "file" / "run")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"the work directory is .* cannot be written to"):
        orc_jax.train(config_of(root), root.parent / "run")
    assert not (root.parent / "run").exists()


def test_images_that_do_not_fit_stay_files(root):
    assert isinstance(load_data(config_of(root, memory=1e-9)).train, folder.Files)


def test_the_command_trains_on_a_folder(root):
    for i, name in enumerate(("cat", "dog")):
        for j in range(20):
            save(root / "train" / name / f"x{j}.bmp", picture(1000 * i + j, (8, 8)))
    workdir = root.parent / "run"
    args = (
        "-m",
        "orc_jax.main",
        "--config=configs/folder.py:ind:resnet8",
        f"--config.data.dir={root}",
        f"--config.data.cache={root.parent / 'cache'}",
        f"--workdir={workdir}",
        "--config.epochs=1",
        "--config.batch_size=16",
    )
    small = run_command(*args, check=False)
    assert small.returncode == 1 and "not of one square size" in small.stderr
    result = run_command(*args, "--config.data.size=8", env=QUICK)
    assert "resnet8" in result.stdout
    for file in ("run.json", "networks/0/network.json"):
        text = (workdir / file).read_text()
        assert '"cat"' in text and '"dog"' in text
    (root / "val" / "cat" / "0.JPEG").write_bytes(b"no")
    bad = run_command(*args, "--config.data.size=8", check=False)
    assert bad.returncode == 1
    assert bad.stderr.startswith("error: 1 of the images cannot be decoded")
    assert bad.stderr.count("\n") == 1 and "val/cat/0.JPEG" in bad.stderr
