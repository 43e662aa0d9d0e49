"""What the options of a scheme string may be: each knows its default, reads a text and says what it accepts."""

import abc
import dataclasses
from typing import Any, final

__all__ = ["Option", "Rates", "Whole", "Word"]


@dataclasses.dataclass(frozen=True)
class Option(abc.ABC):
    """One option of a preset."""

    @property
    @abc.abstractmethod
    def examples(self) -> tuple[str, ...]:
        """Texts that `read` accepts, the default first; together they show the range."""

    @property
    @abc.abstractmethod
    def wanted(self) -> str:
        """What is accepted, as the object of "give"."""

    @property
    @abc.abstractmethod
    def is_optional(self) -> bool:
        """Whether the default goes without saying; a scheme spelled out leaves it out."""

    @abc.abstractmethod
    def read(self, text: str) -> Any | None:
        """Return the value that ``text`` stands for, or None if it is not accepted."""


@final
@dataclasses.dataclass(frozen=True)
class Whole(Option):
    """A whole number from ``least`` to ``most``."""

    default: int
    least: int
    most: int

    @property
    def examples(self) -> tuple[str, ...]:
        """The default and both ends."""
        return str(self.default), str(self.least), str(self.most)

    @property
    def wanted(self) -> str:
        """The range."""
        return f"a whole number from {self.least} to {self.most}"

    @property
    def is_optional(self) -> bool:
        """Only a default of 0, which means none."""
        return self.default == 0

    def read(self, text: str) -> int | None:
        """Return the number."""
        return int(text) if text.isascii() and text.isdecimal() and self.least <= int(text) <= self.most else None


@final
@dataclasses.dataclass(frozen=True)
class Word(Option):
    """One of a few words, the default first."""

    choices: tuple[str, ...]

    @property
    def examples(self) -> tuple[str, ...]:
        """Every word."""
        return self.choices

    @property
    def wanted(self) -> str:
        """The words."""
        return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"

    @property
    def is_optional(self) -> bool:
        """Always."""
        return True

    def read(self, text: str) -> str | None:
        """Return the word."""
        return text if text in self.choices else None


@final
@dataclasses.dataclass(frozen=True)
class Rates(Option):
    """Dilations, one after the other, as ``LOW-HIGH``; ``off`` (the default) for none."""

    most: int = 64

    @property
    def examples(self) -> tuple[str, ...]:
        """None, the paper's example, the widest range."""
        return "off", "2-6", f"1-{self.most}"

    @property
    def wanted(self) -> str:
        """The range."""
        return f"off, or LOW-HIGH with whole numbers from 1 to {self.most}, such as 2-6"

    @property
    def is_optional(self) -> bool:
        """Always."""
        return True

    def read(self, text: str) -> tuple[int, ...] | None:
        """Return every dilation from LOW to HIGH, empty for ``off``."""
        if text == "off":
            return ()
        ends = text.split("-")
        if len(ends) != 2 or not all(end.isascii() and end.isdecimal() for end in ends):
            return None
        low, high = map(int, ends)
        return tuple(range(low, high + 1)) if 1 <= low <= high <= self.most else None
