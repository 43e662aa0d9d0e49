"""What to convert and how, as data: scheme strings and the recipe, from and to TOML."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from binarize.errors import RecipeError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["FULL_PRECISION", "Recipe", "SchemeSpec", "StageSpec"]

FULL_PRECISION = "fp"
"""What a layer pattern maps to when the layer is to stay as it is."""


@final
@dataclasses.dataclass(frozen=True)
class SchemeSpec:
    """A scheme string taken apart: ``name`` or ``name:key=value,key=value``.

    Attributes:
        name: the preset.
        options: values as written; what they may be is the preset's business.
    """

    name: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "SchemeSpec":
        """Take a scheme string apart.

        Raises:
            RecipeError: it is empty or an option is not ``key=value``.
        """
        name, _, rest = text.strip().partition(":")
        options: dict[str, str] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals or not key.strip() or not value.strip():
                raise RecipeError(f"cannot read scheme {text!r}: {part!r} is not key=value; write encoding:w=4,a=4")
            options[key.strip()] = value.strip()
        if not name:
            raise RecipeError(f"cannot read scheme {text!r}: it has no name; write one such as encoding:w=4,a=4")
        return cls(name, options)

    def __str__(self) -> str:
        """Return the string that `parse` reads back."""
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name


EXACTNESS = ("exact", "2^-16", "int8")
STAGES = ("tanh", "activations", "bits", "shared", "binary")


@final
@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One stage of fine-tuning: ``name`` or ``name:key=value,key=value``.

    Attributes:
        name: ``tanh``: float weights, tanh in place of sign; ``activations``: binary activations, float weights;
            ``bits``: encodings of more bits than the scheme says; ``shared``: the first K branches for all images where
            a router chooses K, the others start as their copies afterwards; ``binary``: everything as the scheme says.
        epochs: passes over the data; 0 for as many as fine-tuning is asked for.
        w: for ``bits``: at least so many per weight.
        a: for ``bits``: at least so many per activation.
        rate: what the learning rate is multiplied by, above 0 and at most 1: less for what is trained already.
    """

    name: str
    epochs: int = 0
    w: int = 0
    a: int = 0
    rate: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "StageSpec":
        """Take a stage apart.

        Raises:
            RecipeError: there is no such stage, or an option is not one of its numbers.
        """
        spec = SchemeSpec.parse(text)
        if spec.name not in STAGES:
            known = ", ".join(STAGES)
            raise RecipeError(f"cannot read stage {text!r}{nearest(spec.name, STAGES)}; the stages are {known}")
        options = ("epochs", "w", "a", "rate") if spec.name == "bits" else ("epochs", "rate")
        for key, value in spec.options.items():
            if key not in options:
                raise RecipeError(f"cannot read stage {text!r}: unknown option {key!r}{nearest(key, options)}")
            if key == "rate":
                _require_share(text, value)
            elif not value.isdecimal() or int(value) < 1 or (key != "epochs" and int(value) > 8):
                wanted = "1 or more" if key == "epochs" else "from 1 to 8"
                raise RecipeError(f"cannot read stage {text!r}: {key} is {value!r}; it must be {wanted}")
        if spec.name == "bits" and not {"w", "a"} & set(spec.options):
            raise RecipeError(f"cannot read stage {text!r}: it names no width; write bits:w=8,a=8")
        numbers = {key: int(value) for key, value in spec.options.items() if key != "rate"}
        return cls(spec.name, rate=float(spec.options.get("rate", 1.0)), **numbers)


def _require_share(stage: str, value: str) -> None:
    try:
        fits = 0 < float(value) <= 1
    except ValueError:
        fits = False
    if not fits:
        raise RecipeError(f"cannot read stage {stage!r}: rate is {value!r}; it must be above 0 and at most 1")


def read_stages(texts: Sequence[str]) -> tuple[StageSpec, ...]:
    """Take the stages of a run apart.

    Raises:
        RecipeError: one cannot be read, or the last one would leave another network than the scheme's.
    """
    stages = tuple(map(StageSpec.parse, texts))
    if stages and stages[-1].name != "binary":
        why = "its network is not the one that is packed, whose weights and activations are as the scheme says"
        raise RecipeError(f"cannot end with the stage {texts[-1]!r}: {why}; add the stage binary")
    return stages


@final
@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to convert and how.

    Attributes:
        scheme: scheme string for every layer that no pattern below names.
        layers: shell pattern over module paths to a scheme string or ``fp``; the first match wins.
        keep: shell patterns of layers that stay in full precision.
        convert: shell patterns of layers that are converted although a default below would keep them.
        keep_first: keep the layers that read the image.
        keep_last: keep the layers that give the predictions.
        ends: scheme of the first and the last layers that the two lines above keep; ``fp`` for full precision.
        keep_depthwise: keep convolutions with one input channel per output.
        keep_shared: keep layers that maps of several sizes go through in one pass, as a head of a pyramid.
        smallest: layers with fewer weights than this are kept.
        samples: calibration images, at most.
        reconstruct: follow calibration by block reconstruction against the teacher.
        exactness: of packed weights of several terms on the route int8: ``exact``, ``2^-16`` or ``int8``.
        stages: what fine-tuning trains, one after the other, as `StageSpec` reads it; empty for everything at once.
        seed: of every random choice.
    """

    scheme: str = "encoding:w=4,a=4"
    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep: tuple[str, ...] = ()
    convert: tuple[str, ...] = ()
    keep_first: bool = True
    keep_last: bool = True
    ends: str = FULL_PRECISION
    keep_depthwise: bool = True
    keep_shared: bool = True
    smallest: int = 512
    samples: int = 256
    reconstruct: bool = False
    exactness: str = "exact"
    stages: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("scheme", "ends"):
            if not isinstance(given := getattr(self, key), str):
                raise RecipeError(f"cannot read recipe: {key} is {given!r}; give a scheme, or 'fp' for full precision")
        if self.exactness not in EXACTNESS:
            known = ", ".join(EXACTNESS)
            raise RecipeError(f"cannot read recipe: exactness is {self.exactness!r}; it may be {known}")
        for stage in self.stages:
            StageSpec.parse(stage)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as TOML and JSON hold them."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "recipe") -> "Recipe":
        """Build from plain values.

        Raises:
            RecipeError: a key is unknown or a value has the wrong type.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        default, given = cls(), {}
        for key, value in values.items():
            if key not in fields:
                raise RecipeError(f"cannot read {where}: unknown key {key!r}{nearest(key, fields)}")
            given[key] = _typed(where, key, value, getattr(default, key))
        return cls(**given)

    def to_toml(self) -> str:
        """Return the text that `from_toml` reads back."""
        values = self.to_dict()
        layers = values.pop("layers")
        lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
        if layers:
            lines += ["", "[layers]", *(f"{_toml(key)} = {_toml(value)}" for key, value in layers.items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, path: Path | str) -> "Recipe":
        """Read a recipe file.

        Raises:
            RecipeError: the file cannot be read, is no TOML, or says what no recipe says.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as cause:
            raise RecipeError(f"cannot read recipe {path}: {cause.strerror}; give a TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
            raise RecipeError(f"cannot read recipe {path}: not TOML, {cause}") from None
        return cls.from_dict(values, f"recipe {path}")


def _typed(where: str, key: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"cannot read {where}: {key} must be a list of strings, got {value!r}")
        return tuple(value)
    if isinstance(default, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
            raise RecipeError(f"cannot read {where}: {key} must map patterns to scheme strings, got {value!r}")
        return dict(value)
    if type(value) is not type(default):
        raise RecipeError(f"cannot read {where}: {key} must be a {type(default).__name__}, got {value!r}")
    return value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return str(value)
