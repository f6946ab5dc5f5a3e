"""``miles explain``."""

from __future__ import annotations

import textwrap

import click

from miles_core.errors.catalogue import CATALOGUE, SECTIONS, Explanation, markdown


@click.command()
@click.argument("code", required=False)
@click.option("--markdown", "as_markdown", is_flag=True, hidden=True, help="Print the whole catalogue as docs/errors.md.")
def explain(code: str | None, as_markdown: bool) -> None:
    """Explain an error CODE such as M105; without one, list all codes."""
    if as_markdown:
        click.echo(markdown(), nl=False)
    elif code is None:
        for title, codes in SECTIONS.items():
            if codes:
                click.echo(f"{title}\n" + "\n".join(f"  {each}  {said.title}" for each, said in codes.items()))
    else:
        said = CATALOGUE.get(code.upper())
        if said is None:
            raise click.BadParameter(f"there is no error {code!r}; miles explain lists all codes.", param_hint="CODE")
        click.echo(_text(code.upper(), said))


def _text(code: str, said: Explanation) -> str:
    def wrapped(text: str) -> str:
        plain = text.replace("`", "")
        return textwrap.fill(
            plain, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
        )

    parts = (f"{code}: {said.title}", wrapped(said.meaning), "What to do", wrapped(said.remedy), "Example", wrapped(said.example))
    return "\n".join(parts)
