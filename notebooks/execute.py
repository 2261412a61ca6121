"""Runs notebooks from top to bottom, and stores them with what they show.

    python -m notebooks.execute [NAME ...]

NAME: of a notebook in this folder, without .ipynb; the default is all of them. `make notebooks`
runs this on the output of `make quickstart`.
"""

import ast
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = pathlib.Path(__file__).parent
_KERNEL = "python3"
_TAG = "parameters"  # as papermill has it


def names() -> list[str]:
    """The notebooks of this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> NotebookNode:
    """A notebook as it is stored."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def _parameter_cell(notebook: NotebookNode) -> NotebookNode:
    (cell,) = (cell for cell in notebook.cells if _TAG in cell.metadata.get("tags", ()))
    return cell


def parameters(notebook: NotebookNode) -> list[str]:
    """The names that its cell of parameters assigns."""
    statements = ast.parse(_parameter_cell(notebook).source).body
    return [node.targets[0].id for node in statements if isinstance(node, ast.Assign)]


def with_parameters(notebook: NotebookNode, values: Mapping[str, Any]) -> NotebookNode:
    """A copy of the notebook with other values for some of its parameters.

    Raises:
      KeyError: it has no parameter of that name.
    """
    unknown = values.keys() - set(parameters(notebook))
    if unknown:
        raise KeyError(f"no parameter {', '.join(sorted(unknown))}")
    changed = nbformat.from_dict(notebook)
    lines = (f"\n{name} = {value!r}" for name, value in values.items())
    _parameter_cell(changed).source += "".join(lines)
    return changed


def execute(
    notebook: NotebookNode, environment: Mapping[str, str] | None = None, timeout: float = 600
) -> None:
    """Runs all cells, in this folder and by this interpreter; their outputs stay in the notebook.

    Args:
      environment: variables of the kernel beside those of this process.
      timeout: of a cell, seconds.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised.
      nbclient.exceptions.CellTimeoutError: a cell took too long.
    """
    # No folder of kernels: ipykernel's own is left, which is this interpreter. A kernel "python3"
    # that someone has installed for all environments may be another.
    specs = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name=_KERNEL, kernel_spec_manager=specs)
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=timeout,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(FOLDER)}},
    )
    # This copy of the package, also where another one is installed.
    path = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    client.execute(cleanup_kc=True, env={**os.environ, "PYTHONPATH": path, **(environment or {})})


def strip(notebook: NotebookNode) -> None:
    """Takes out what differs from run to run and from machine to machine: versions, warnings."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": _KERNEL},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        if cell.cell_type == "code":
            kept = (output for output in cell.outputs if output.get("name") != "stderr")
            cell.outputs = list(kept)


def main() -> None:
    for name in sys.argv[1:] or names():
        notebook = read(name)
        print(f"{name}.ipynb", flush=True)
        execute(notebook)
        strip(notebook)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
