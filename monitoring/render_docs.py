"""Writes the tables of `docs/metrics.md`: `python -m monitoring.render_docs`."""

from collections.abc import Iterator
from pathlib import Path

from monitoring.metrics import GROUPS

FILE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN, END = "<!-- made by `make dashboards` -->\n", "<!-- end -->\n"


def tables() -> str:
    """Every metric with the question that it answers, by group."""
    return "\n".join("\n".join(_lines(title)) for title in GROUPS)


def _lines(title: str) -> Iterator[str]:
    yield f"### {title}\n"
    yield "| metric | labels | question | what it is |"
    yield "|---|---|---|---|"
    for metric in GROUPS[title]:
        labels = ", ".join(metric.labels)
        yield f"| `{metric.name}` ({metric.kind}) | {labels} | {metric.question} | {metric.help} |"
    yield ""


def with_tables(text: str) -> str:
    """The document with its tables made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    FILE.write_text(with_tables(FILE.read_text()))
