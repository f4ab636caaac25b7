"""What a study is, and the runs that it consists of on a base."""

import importlib.util
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from orc_jax import checks, methods, pretraining
from orc_jax import config as configs
from orc_jax.errors import UserError, unknown
from orc_jax.runtime import workdir

TEACHER = "teacher-"  # with a network's name, in place of a variant: runs that other runs need


@dataclass(frozen=True)
class Study:
    """A comparison of variants of a base, which is a config file with a preset.

    A variant is written as the arguments of `python -m orc_jax.main` are: a preset of the base's
    file, with or without networks, and then overrides, as in
    "dml:{student},{student} --config.method.temperature=3". {teacher} is the first network of the
    base, {student} the last one and {networks} are all. Settings that a variant leaves out (epochs,
    data, optimizer, …) are those of the base, so that variants differ in their methods alone.

    Attributes:
      bases: the bases that the study is made for; the first is the default.
      preset: the preset of a base that names none.
      variants: the variants by name.
      baseline: name of the variant that the others are tested against.
      seeds: number of seeds, which are 0, 1, ….
      published: key of a base (see `Base.key`) → variant → published top-1 accuracy in percent.
        Variants that are not the published method have none.
      not_public: what of the published settings is not known, as a sentence for the table's notes.
    """

    bases: tuple[str, ...]
    preset: str
    variants: dict[str, str]
    baseline: str
    seeds: int = 5
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    not_public: str = ""


@dataclass(frozen=True)
class Run:
    """A run of a study: `python -m orc_jax.main` with certain arguments.

    Attributes:
      variant: name of the variant; "teacher-NETWORK" for a teacher that other runs need.
      seed: the seed.
      workdir: the work directory.
      arguments: the arguments of the command.
      config: the config that they result in.
      teacher: the run that must be finished before this one; None if there is none.
    """

    variant: str
    seed: int
    workdir: Path
    arguments: tuple[str, ...] = field(compare=False)
    config: ConfigDict = field(compare=False)
    teacher: "Run | None" = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The run's name in messages."""
        return f"{self.variant} seed {self.seed}"

    @property
    def compared(self) -> bool:
        """Whether the run is that of a variant and not of a teacher."""
        return not self.variant.startswith(TEACHER)


def load(path: str) -> tuple[Study, str]:
    """Load a study.

    Args:
      path: Python file that defines STUDY.

    Returns:
      The study, and its title: the first line of the file's docstring.

    Raises:
      UserError: there is no such file, no study in it, or a wrong name in the study.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no study {path}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise UserError(f"{path} is not a study: it has no STUDY")
    if study.baseline not in study.variants:
        raise unknown("baseline", study.baseline, study.variants)
    for name in study.variants:
        if not re.fullmatch(r"\w[\w.+=-]*", name) or name.startswith(TEACHER):
            raise UserError(
                f"a variant of {path} is named {name!r}, which names a folder: allowed are "
                f"letters, digits and _.+=-, and nothing that begins with {TEACHER}"
            )
    return study, (module.__doc__ or file.stem).strip().splitlines()[0].rstrip(".")


class Base(NamedTuple):
    """What all variants of a study have in common.

    Attributes:
      file: the config file.
      config: the config of its preset, with the overrides.
      overrides: --config.KEY=VALUE, for all variants.
      out: folder with the work directories, VARIANT/seedN.
    """

    file: str
    config: ConfigDict
    overrides: tuple[str, ...]
    out: Path

    @property
    def networks(self) -> list[str]:
        """Names of the peers' networks, in peer order."""
        return [peer.model for peer in self.config.peers]

    @property
    def key(self) -> str:
        """The data set and the networks, as "DATA NETWORK,NETWORK"."""
        return f"{self.config.data.name} {','.join(self.networks)}"


# Settings that a published result does not depend on.
HARMLESS = (*configs.HARMLESS, "eval_every", "checkpoint_every")


def published(study: Study, base: Base) -> dict[str, float]:
    """Return variant → published accuracy; nothing for a base with settings of the user's own."""
    keys = (override.partition("=")[0] for override in base.overrides)
    if all(key.removeprefix("--config.") in HARMLESS for key in keys):
        return study.published.get(base.key, {})
    return {}


def read_base(study: Study, base: str, overrides: Iterable[str], out: Path) -> Base:
    """Read a base.

    Args:
      study: the study.
      base: "FILE" or "FILE:PRESET".
      overrides: --config.KEY=VALUE, for all variants.
      out: folder for the work directories.

    Raises:
      UserError: there is no such file, preset or setting.
    """
    file, _, preset = base.partition(":")
    for override in overrides:
        if override.startswith("--config.seed="):
            raise UserError(f"{override}: a study's seeds are 0 to N − 1, by --seeds=N")
    config = config_of((f"--config={file}:{preset or study.preset}", *overrides))
    return Base(file, config, tuple(overrides), out)


def config_of(arguments: Iterable[str]) -> ConfigDict:
    """Return the config that `python -m orc_jax.main` makes of its arguments.

    Args:
      arguments: --config=FILE:PRESET, then overrides.

    Raises:
      UserError: there is no such file, preset or setting.
    """
    argv = ["", *arguments]
    flag_values = flags.FlagValues()  # not those of the program
    try:
        flag = config_flags.DEFINE_config_file("config", flag_values=flag_values, sys_argv=argv)
        if rest := flag_values(argv)[1:]:
            raise UserError(f"unexpected argument {rest[0]!r}: overrides are --config.KEY=VALUE")
        return flag.value.copy_and_resolve_references()  # raises OSError if the file is missing
    except OSError as error:
        file = argv[1].removeprefix("--config=").partition(":")[0]
        raise UserError(f"no such config file: {file}") from error
    except (flags.Error, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        checks.check_overrides(argv)  # raises an error that names the key, if a key is unknown
        raise UserError(str(error)) from error


def plan(study: Study, base: Base, names: Iterable[str], seeds: int) -> list[Run]:
    """Plan the runs of variants, seed by seed, each teacher before the first run that needs it.

    Args:
      study: the study.
      base: the base.
      names: names of the variants.
      seeds: number of seeds.

    Raises:
      UserError: a variant is impossible, or one of its work directories has another config.
    """
    runs: dict[Path, Run] = {}
    for name in names:
        try:
            arguments = arguments_of(study.variants[name], base)
            for seed in range(seeds):
                run = _run(name, seed, arguments, base)
                if run.teacher:
                    runs.setdefault(run.teacher.workdir, run.teacher)
                runs.setdefault(run.workdir, run)
        except UserError as error:
            raise UserError(f"variant {name}: {error}") from error
    return sorted(runs.values(), key=lambda run: run.seed)


def arguments_of(variant: str, base: Base) -> tuple[str, ...]:
    """Return the arguments of `python -m orc_jax.main` without seed and work directory.

    Args:
      variant: see `Study`.
      base: the base.

    Raises:
      UserError: the variant has the wrong form, or its preset does not exist.
    """
    names = base.networks
    try:
        preset, *own = shlex.split(
            variant.format(teacher=names[0], student=names[-1], networks=",".join(names))
        )
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{variant!r} is no preset with overrides: {error}") from error
    preset = f"--config={base.file}:{preset}"
    return (preset, *_like_base(config_of((preset,)), base.config), *base.overrides, *own)


def _like_base(config, base) -> list[str]:
    """Return the overrides that give a config the settings of the base.

    These are all settings but method, peers and seed, and the optimizer of each peer, which is that
    of the base's peer with the same network.
    """
    settings = _settings(config)
    changes = {key: value for key, value in _settings(base).items() if value != settings[key]}
    for i, peer in enumerate(config.peers):
        base_peer = next((other for other in base.peers if other.model == peer.model), None)
        for key, current in peer.optimizer.items():
            value = base_peer and base_peer.optimizer[key]
            if value is None and current is not None:
                value = base.optimizer[key]
            if value != current:
                changes[f"peers[{i}].optimizer.{key}"] = value
    return [f"--config.{key}={value}" for key, value in changes.items()]


def _settings(config) -> dict[str, Any]:
    """Return all settings but method, peers and seed by their dotted keys."""
    settings = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict) and key != "method":
            settings |= {f"{key}.{name}": setting for name, setting in value.items()}
        elif key not in ("method", "peers", "seed"):
            settings[key] = value
    return settings


def _run(variant, seed, arguments, base) -> Run:
    """Return a run of a variant, with the run of its teacher if one must be trained first."""
    config = config_of(arguments)
    method = methods.get(config.method.name)
    teacher = None
    for i, taught_by in pretraining.wanted(configs.resolved(config)).items():
        if not taught_by:  # one that is trained plainly is shared by all variants
            network = config.peers[i].model
            own = [f"--config.epochs={config.pretrain.epochs or config.epochs}"]
            for key, value in config.pretrain.optimizer.items():
                own += [f"--config.peers[0].optimizer.{key}={value}"] if value is not None else []
            teacher_arguments = (*arguments_of(f"ind:{network}", base), *own)
            teacher = _checked(TEACHER + network, seed, teacher_arguments, base, None)
            saved = teacher.workdir / "networks" / "0"
            arguments = (*arguments, f"--config.peers[{i}].init_from={saved}")
    target = base.networks[-1]
    kept = method.positions.kept(config.method, len(config.peers))
    if target not in {config.peers[i].model for i in kept}:
        raise UserError(f"it keeps no {target}, the base's last network, which is compared")
    return _checked(variant, seed, arguments, base, teacher)


def _checked(variant, seed, arguments, base, teacher) -> Run:
    """Return a run after checking its config, and that its work directory is free or its own."""
    directory = base.out / variant / f"seed{seed}"
    arguments = (*arguments, f"--config.seed={seed}")
    config = config_of(arguments)
    # The process of the run checks whether the devices exist; they may not be visible here.
    checks.check(config, max(1, config.mesh.data) * max(1, config.mesh.peer))
    config = configs.resolved(config)
    if (directory / "config.json").exists():
        workdir.check_config(directory, config)
    return Run(variant, seed, directory, (*arguments, f"--workdir={directory}"), config, teacher)
