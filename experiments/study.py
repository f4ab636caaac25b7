"""What a study is, and the runs that it stands for on a base."""

import importlib.util
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from orc_jax import checks, methods
from orc_jax import config as configs
from orc_jax.errors import UserError, unknown
from orc_jax.runtime import workdir

TEACHER = "teacher-"  # before the network's name: runs that other runs need


@dataclass(frozen=True)
class Study:
    """What is compared.

    A variant is what `python -m orc_jax.main` would take: a preset of the base's file, with or
    without networks, then overrides: "dml:{student},{student} --config.method.temperature=3".
    {teacher} and {student} are the first and the last network of the base, {networks} all.
    All that a variant does not say is the base's: epochs, data, optimizer. So the methods differ
    and nothing else does.

    Attributes:
      bases: config files that it was made for; the first is the default.
      preset: of the base's file, where the command names none.
      variants: by name.
      baseline: the variant that the others are tested against.
      seeds: how many, from 0.
      published: "DATA NETWORK,NETWORK" (of a base) → variant → top-1 accuracy in percent.
    """

    bases: tuple[str, ...]
    preset: str
    variants: dict[str, str]
    baseline: str
    seeds: int = 5
    published: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training: `python -m orc_jax.main` with these arguments.

    Attributes:
      variant: whose; a teacher's name for one that is trained for others.
      config: what the arguments say.
      teacher: the run that must be finished before.
    """

    variant: str
    seed: int
    workdir: Path
    arguments: tuple[str, ...] = field(compare=False)
    config: ConfigDict = field(compare=False)
    teacher: "Run | None" = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """For the reader."""
        return f"{self.variant} seed {self.seed}"

    @property
    def compared(self) -> bool:
        """Whether it is a variant's and not a teacher's."""
        return not self.variant.startswith(TEACHER)


def load(path: str) -> tuple[Study, str]:
    """The study of a file, and the first line of what it says about itself.

    Raises:
      UserError: there is none.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no study {path}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None:
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
    """What all variants of a study share.

    Attributes:
      file: the config file.
      config: of its preset, with the overrides.
      overrides: --config.KEY=VALUE, for all variants.
      out: folder for the work directories, VARIANT/seedN.
    """

    file: str
    config: ConfigDict
    overrides: tuple[str, ...]
    out: Path

    @property
    def networks(self) -> list[str]:
        """Of the peers, in order."""
        return [peer.model for peer in self.config.peers]

    @property
    def key(self) -> str:
        """The data set and the networks, as `Study.published` has them."""
        return f"{self.config.data.name} {','.join(self.networks)}"


def read_base(study: Study, base: str, overrides: Iterable[str], out: Path) -> Base:
    """The base of "FILE" or "FILE:PRESET" (`UserError` if there is no such thing)."""
    file, _, preset = base.partition(":")
    for override in overrides:
        if override.startswith("--config.seed="):
            raise UserError(f"{override}: a study's seeds are 0 to N − 1, by --seeds=N")
    config = config_of((f"--config={file}:{preset or study.preset}", *overrides))
    return Base(file, config, tuple(overrides), out)


def config_of(arguments: Iterable[str]) -> ConfigDict:
    """The config that `python -m orc_jax.main` makes of --config=FILE:PRESET and overrides.

    Raises:
      UserError: there is no such file, preset or setting.
    """
    argv = ["", *arguments]
    alone = flags.FlagValues()
    try:
        flag = config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=argv)
        if rest := alone(argv)[1:]:
            raise UserError(f"unexpected argument {rest[0]!r}: overrides are --config.KEY=VALUE")
        return flag.value.copy_and_resolve_references()  # which a missing file first shows in
    except OSError as error:
        file = argv[1].removeprefix("--config=").partition(":")[0]
        raise UserError(f"no such config file: {file}") from error
    except (flags.Error, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        checks.check_overrides(argv)  # says which key it is about
        raise UserError(str(error)) from error


def plan(study: Study, base: Base, names: Iterable[str], seeds: int) -> list[Run]:
    """The runs of these variants, seed by seed, a teacher before the first that needs it.

    Raises:
      UserError: something is wrong with one of them, or its work directory has another config.
    """
    runs: dict[Path, Run] = {}
    for name in names:
        try:
            arguments = arguments_of(study.variants[name], base)
            for seed in range(seeds):
                run = _run(name, seed, arguments, base)
                for needed in filter(None, (run.teacher, run)):
                    runs.setdefault(needed.workdir, needed)
        except UserError as error:
            raise UserError(f"variant {name}: {error}") from error
    return sorted(runs.values(), key=lambda run: run.seed)


def arguments_of(variant: str, base: Base) -> tuple[str, ...]:
    """What `python -m orc_jax.main` takes for a variant, but for seed and work directory."""
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
    """The overrides that give a config the base's settings: all but method, peers and seed."""
    found, wanted = _settings(config), _settings(base)
    changes = {key: value for key, value in wanted.items() if value != found[key]}
    for i, member in enumerate(config.peers):
        same = next((peer for peer in base.peers if peer.model == member.model), None)
        for key, own in member.optimizer.items():
            value = same and same.optimizer[key]
            if value is None and own is not None:
                value = base.optimizer[key]
            if value != own:
                changes[f"peers[{i}].optimizer.{key}"] = value
    return [f"--config.{key}={value}" for key, value in changes.items()]


def _settings(config) -> dict[str, Any]:
    """Everything that is not about method, peers and seed, by its dotted key."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict) and key != "method":
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        elif key not in ("method", "peers", "seed"):
            flat[key] = value
    return flat


def _run(variant, seed, arguments, base) -> Run:
    """A run of a variant, with its teacher if one must be trained first."""
    config = config_of(arguments)
    method = methods.get(config.method.name)
    teacher = None
    for i, kind in enumerate(method.positions.kinds(config.method, len(config.peers))):
        if kind == "frozen" and not config.peers[i].init_from:
            network = config.peers[i].model
            of_teacher = arguments_of(f"ind:{network}", base)
            teacher = _checked(TEACHER + network, seed, of_teacher, base, None)
            trained = teacher.workdir / "networks" / "0"
            arguments = (*arguments, f"--config.peers[{i}].init_from={trained}")
    target = base.networks[-1]
    kept = method.positions.kept(config.method, len(config.peers))
    if target not in {config.peers[i].model for i in kept}:
        raise UserError(f"it keeps no {target}, the base's last network, which is compared")
    return _checked(variant, seed, arguments, base, teacher)


def _checked(variant, seed, arguments, base, teacher) -> Run:
    """A run whose config is checked, and whose work directory is free or its own."""
    directory = base.out / variant / f"seed{seed}"
    arguments = (*arguments, f"--config.seed={seed}")
    config = config_of(arguments)
    # The devices are those of the run's own process, which looks whether they are there.
    checks.check(config, max(1, config.mesh.data) * max(1, config.mesh.peer))
    config = configs.resolved(config)
    if (directory / "config.json").exists():
        workdir.check_config(directory, config)
    return Run(variant, seed, directory, (*arguments, f"--workdir={directory}"), config, teacher)
