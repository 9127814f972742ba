"""Run the notebooks in fresh kernels, and store what they print and draw.

python examples/notebooks/run.py               # all of them
python examples/notebooks/run.py swap watch    # some

Each runs in an empty folder. What would change from one machine to the next without meaning
anything, such as times and versions, is not stored, so that a diff shows what matters.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(name: str) -> NotebookNode:
    """The notebook as it is after a run from its first cell to its last.

    Raises:
        CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    # Commands of the environment come first, also where it is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # Lightning warns wherever SLURM is installed, which is no matter of the notebook.
    quiet = "ignore:The `srun` command is available"
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute(env={**os.environ, "PATH": path, "PYTHONWARNINGS": quiet})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":  # a shell command ends its lines as a terminal does
                output.text = output.text.replace("\r\n", "\n")
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    for name in parser.parse_args().names or NAMES:
        print(f"running {name}", flush=True)
        nbformat.write(executed(name), FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
