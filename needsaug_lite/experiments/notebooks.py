r"""Execute a notebook with the parameters of a profile.

    python -m needsaug_lite.experiments.notebooks nbs/01_topic.ipynb \\
        --profile lite --output book/chapters/01_topic.ipynb -p seed 3

A profile file has a section `common`, from which a notebook gets only the parameters
that it declares, and one section per notebook, in which every name must be declared.
papermill warns about an unknown parameter and goes on; here it is refused before
anything runs.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from needsaug_lite.errors import UserError

logger = logging.getLogger(__name__)

Value = str | int | float | bool | None | list["Value"]
# One cell may train a network in the larger profiles, but none may hang for ever.
CELL_TIMEOUT = 3600


def execute(
    notebook: Path,
    output: Path,
    profile: str,
    parameters: Mapping[str, Value] | None = None,
    *,
    cell_timeout: int = CELL_TIMEOUT,
) -> None:
    """Execute a notebook in its own folder and write the result in one step.

    While it runs, the result so far is in a hidden file beside `output`, which stays
    there after a failure; `output` itself appears only when every cell has run.

    Args:
        notebook: the notebook, with one cell tagged `parameters`.
        output: where the executed notebook goes.
        profile: name of a file in `profiles/` beside the notebook.
        parameters: values that replace those of the profile.
        cell_timeout: seconds after which a cell is stopped; 0 for no limit.

    Raises:
        UserError: if the profile or a parameter is unknown or has another type.
        papermill.PapermillExecutionError: if a cell fails.
    """
    import papermill

    declared = declared_parameters(notebook)
    chosen = profile_parameters(notebook, profile, declared)
    _refuse_unknown(parameters or {}, declared, notebook, "the caller")
    chosen |= parameters or {}
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.partial.ipynb").resolve()
    logger.info("%s with %s", notebook.name, chosen or "its own parameters")
    papermill.execute_notebook(
        str(notebook),
        str(partial),
        parameters=chosen,
        kernel_name="python3",
        language="python",
        cwd=str(notebook.parent),
        progress_bar=False,
        execution_timeout=cell_timeout or None,
    )
    _hide_injected_cell(partial)
    partial.replace(output)


def declared_parameters(notebook: Path) -> dict[str, Value]:
    """Names and default values in the notebook's cell tagged `parameters`.

    Raises:
        UserError: if the notebook is missing, has several such cells, or assigns
            anything but a plain value in it.
    """
    cells = [c for c in _read(notebook).cells if "parameters" in _tags(c)]
    if len(cells) > 1:
        raise UserError(f"{notebook} has {len(cells)} cells tagged `parameters`")
    statements = ast.parse(cells[0].source).body if cells else []
    defaults: dict[str, Value] = {}
    for statement in statements:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                defaults[name] = _plain(value, name, notebook)
            case _:
                raise UserError(
                    f"{notebook}: the cell tagged `parameters` may only assign plain "
                    f"values, not `{ast.unparse(statement)}`"
                )
    return defaults


def profile_parameters(
    notebook: Path, profile: str, declared: Mapping[str, Value]
) -> dict[str, Value]:
    """What a profile sets for this notebook.

    Args:
        notebook: the notebook; its profiles are in `profiles/` beside it.
        profile: the profile's name.
        declared: the notebook's parameters and their defaults.

    Returns:
        Values by name, those of the notebook's own section last.

    Raises:
        UserError: if there is no such profile, its layout is wrong, or the notebook's
            own section names a parameter that the notebook does not declare.
    """
    folder = notebook.parent / "profiles"
    file = folder / f"{profile}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise UserError(f"there is no profile {file}; profiles there: {known}")
    sections = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if not isinstance(sections, dict):
        raise UserError(f"{file}: expected a section per notebook and `common`")
    own, common = (_section(sections, name, file) for name in (notebook.stem, "common"))
    _refuse_unknown(own, declared, notebook, f"{file}, section {notebook.stem}")
    shared = {name: value for name, value in common.items() if name in declared}
    _refuse_unknown(shared, declared, notebook, f"{file}, section common")
    return shared | own


def _section(sections: Mapping[str, object], name: str, file: Path) -> dict[str, Value]:
    section = sections.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{file}: section {name} must map parameter names to values")
    return section


def _refuse_unknown(
    given: Mapping[str, Value],
    declared: Mapping[str, Value],
    notebook: Path,
    origin: str,
) -> None:
    """Raise if a name is not declared or a value has another type than the default."""
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise UserError(
            f"{origin} sets {', '.join(unknown)}, which {notebook.name} does not "
            f"declare; it declares: {', '.join(declared) or 'no parameters'}"
        )
    for name, value in given.items():
        if not _same_type(value, declared[name]):
            raise UserError(
                f"{origin} sets {name} = {value!r}, but {notebook.name} declares "
                f"{name} = {declared[name]!r}: a value of the same type is needed"
            )


def _same_type(value: Value, default: Value) -> bool:
    if value is None or default is None:
        return True
    if isinstance(default, float) and isinstance(value, int):
        return not isinstance(value, bool)
    return type(value) is type(default)


def _plain(value: ast.expr, name: str, notebook: Path) -> Value:
    try:
        plain: Value = ast.literal_eval(value)
    except ValueError as error:
        raise UserError(
            f"{notebook}: parameter {name} must have a plain value as its default, "
            f"not `{ast.unparse(value)}`"
        ) from error
    return plain


def _hide_injected_cell(path: Path) -> None:
    """Tag the cell that papermill adds, so that the book does not show it."""
    notebook = _read(path)
    for cell in notebook.cells:
        if "injected-parameters" in _tags(cell):
            cell.metadata.tags = [*_tags(cell), "remove-cell"]
    nbformat.write(notebook, path)


def _read(notebook: Path) -> NotebookNode:
    if not notebook.is_file():
        raise UserError(f"there is no notebook {notebook}")
    content: NotebookNode = nbformat.read(notebook, as_version=4)
    return content


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m needsaug_lite.experiments.notebooks",
        description="Execute a notebook with the parameters of a profile.",
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--profile", default="lite")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cell-timeout", type=int, default=CELL_TIMEOUT)
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[],
        metavar=("NAME", "VALUE"), help="replace a parameter; VALUE is read as YAML",
    )  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 if a cell failed, 2 for a wrong call."""
    from papermill import PapermillExecutionError

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("papermill").setLevel(logging.WARNING)
    options = _parse(arguments)
    # A kernel of the user's own must not stand in for the environment's.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    parameters = {name: yaml.safe_load(text) for name, text in options.parameters}
    try:
        execute(
            options.notebook,
            options.output,
            options.profile,
            parameters,
            cell_timeout=options.cell_timeout,
        )
    except UserError as error:
        logger.error("%s", error)
        return 2
    except PapermillExecutionError as error:
        logger.error(
            "%s: cell %s failed\n%s", options.notebook, error.cell_index, error
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
