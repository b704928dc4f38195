"""The site: these pages, README and the Python API. CONTRIBUTING.md has the command that builds it.

Its sources are the repository's own pages, where they are: their links lead to the same places on the site.
"""

import shutil
from pathlib import Path
from typing import Any

from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

import cca_ray

ROOT = Path(__file__).resolve().parents[1]
CONTENTS = {
    "Using it": ["docs/python", "docs/api", "docs/terminal", "docs/mlflow", "docs/search", "docs/pretrain",
                 "docs/studies/striped_digits"],
    "Large models, clusters": ["docs/imagenet", "docs/captions", "docs/cluster", "docs/scale", "docs/gpu"],
    "Changing it": ["docs/extend", "CONTRIBUTING", "tests/README", "tests/NIGHTLY", "tests/chaos/README",
                    "benchmarks/README", "CHANGELOG"],
}  # fmt: skip

project, author = "cca_ray", "the authors of cca_ray"
version = release = cca_ray.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = [root_doc + ".md", *(f"{page}.*" for pages in CONTENTS.values() for page in pages)]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_heading_anchors = 4
default_role = "literal"  # docstrings have `names` as Markdown does
add_module_names = False
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
html_theme = "alabaster"
html_theme_options = {"description": "Hyperparameters of CCA, found", "page_width": "70em", "sidebar_width": "15em"}
html_show_copyright = html_copy_source = html_show_sourcelink = False


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """What the sidebar shows; README itself has no need of it."""
    if page == root_doc:
        for title, pages in CONTENTS.items():
            listed = "\n".join(f"/{name}" for name in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n"


class FoldersAreText(SphinxPostTransform):
    """A link to a folder of the repository, which is no page of the site: its text alone."""

    default_priority = 5  # before MyST looks for a page of this name

    def run(self, **kwargs: Any) -> None:
        for link in list(self.document.findall(pending_xref)):
            page = ROOT / self.env.doc2path(str(link.get("refdoc", root_doc)), base=False)
            if link.get("reftype") == "myst" and (page.parent / str(link["reftarget"])).is_dir():
                link.replace_self(link.children)


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Where a browser begins."""
    if error is None:
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.add_post_transform(FoldersAreText)
    app.connect("build-finished", add_index)
