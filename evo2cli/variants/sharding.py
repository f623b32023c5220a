"""Parts of a stream of records that processes score apart from each other."""

from dataclasses import dataclass

from evo2cli.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `of` parts, all of them whole groups of records and in order."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`2/8`: the second of eight; UsageError where it is not of that form."""
        number, slash, of = text.partition("/")
        if not slash or not (number.isdecimal() and of.isdecimal()) or not 1 <= int(number) <= int(of):
            raise UsageError(f"--shard {text} is not of the form i/n with i from 1 to n, such as 1/8; mend it")
        return cls(int(number), int(of))

    def part(self, number: int, of: int) -> "Shard":
        """Part `number` (from 1) of `of` parts of this one."""
        return Shard((self.number - 1) * of + number, self.of * of)

    def span(self, records: int, group_size: int) -> tuple[int, int]:
        """First and one past the last record, numbered from 0, of so many."""
        groups = -(-records // group_size)
        first, end = (groups * n // self.of * group_size for n in (self.number - 1, self.number))
        return first, min(end, records)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
