"""Execute docs/tutorial.py and write docs/tutorial.md with what it printed and drew: ``python docs/render.py``.

The work is done by jupytext and nbconvert. What is ours: sounds go to a folder that is thrown away, warnings (which name files of the
machine) are not on the page, and figures are small and have 256 colours.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from pathlib import Path

import jupytext
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor
from PIL import Image

DOCS = Path(__file__).parent
FIGURES = ["--InteractiveShellApp.matplotlib=inline", "--InlineBackend.print_figure_kwargs={'dpi': 72, 'bbox_inches': None}"]


def main() -> None:
    """Write docs/tutorial.md and docs/tutorial_files/*.png; what is there stays if a cell fails."""
    notebook = jupytext.read(DOCS / "tutorial.py")
    os.environ["PYTHONWARNINGS"] = "ignore"  # for the kernel, which inherits it
    with tempfile.TemporaryDirectory() as folder:
        executor = ExecutePreprocessor(timeout=None, kernel_name="python3", extra_arguments=FIGURES, coalesce_streams=True)
        executor.preprocess(notebook, {"metadata": {"path": folder}})
    body, resources = MarkdownExporter().from_notebook_node(notebook, {"output_files_dir": "tutorial_files", "unique_key": "tutorial"})
    figures = DOCS / "tutorial_files"
    figures.mkdir(exist_ok=True)
    for old in figures.glob("*.png"):
        old.unlink()
    for name, data in resources["outputs"].items():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)
    (DOCS / "tutorial.md").write_text(re.sub(r"[ \t]+\n", "\n", body).strip() + "\n")


if __name__ == "__main__":
    main()
