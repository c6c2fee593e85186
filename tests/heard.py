"""A reporter that keeps what was said."""

from collections.abc import Sequence

from comp.progress import Reporter


class Heard(Reporter):
    """What was said, warned of and shown as a table."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(f"warning: {line}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.lines += [title, *(" ".join(map(str, row)) for row in (columns, *rows))]

    def __str__(self) -> str:
        return "\n".join(self.lines)
