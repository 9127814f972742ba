"""How Sphinx builds the site: ``tox run -e docs``."""

import json
import shutil
import sys
from pathlib import Path

import hsplugin

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))
# Sphinx reads one folder, so the notebooks are copied into it; they keep their committed outputs.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
(HERE / "notebooks").mkdir()
for path in HERE.parent.glob("notebooks/*.ipynb"):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    # Cells with ! commands are no plain Python.
    notebook["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    (HERE / "notebooks" / path.name).write_text(json.dumps(notebook), encoding="utf-8")

project = "hsplugin"
author = "hsplugin contributors"
project_copyright = f"%Y, {author}"
version = release = hsplugin.__version__

extensions = [
    "declared",
    "myst_nb",
    "repository_links",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_argparse_cli",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_extensions", "**/.ipynb_checkpoints"]
nitpicky = True
# Types of other packages, whose documentation an offline build cannot look names up in.
nitpick_ignore_regex = [
    ("py:.*", r"(collections|pathlib|typing|numpy|torch|torchmetrics|lightly|lightning)(\..*)?"),
    ("py:class", r"Extract|Metric|Pool|Tensor|hsplugin\.losses\._Loss"),
    ("py:.*", r"(pytorch_lightning|sentence_transformers|solo|stable_pretraining)(\..*)?"),
]

nb_execution_mode = "off"
# Of a ! command over several lines; it is coloured all the same.
suppress_warnings = ["misc.highlighting_failure"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

# Frameworks that a build needs for nothing but the names of base classes.
autodoc_mock_imports = [
    "omegaconf",
    "sentence_transformers",
    "solo",
    "stable_pretraining",
    "timm",
    "transformers",
]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Settings of method_kwargs", "params_style")]

# GitHub makes the anchors of its pages in the browser.
linkcheck_anchors_ignore_for_url = ["https://github.com/"]

copybutton_exclude = ".linenos, .gp, .go"
html_theme = "furo"
html_title = "hsplugin"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": "https://github.com/hsplugin/hsplugin/",
    "source_branch": "main",
    "source_directory": "examples/docs/",
}
