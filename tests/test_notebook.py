"""The example notebook runs from its first cell to its last, on a smaller base and a shorter search."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SETTINGS = {
    "pretrain.epochs": 3, "pretrain.tokenizer_epochs": 1, "pretrain.feature_epochs": 1, "pretrain.variants": 1,
    "train.epochs": 1, "search.max_concurrent": 1, "rungs": [{"at": 0.5, "samples": 100}, {"at": 1.0, "samples": 200}],
    "score.samples": 200, "score.blocks": 1, "score.finalists": 2, "score.guidance_scales": [1.5],
    "score.widen_guidance": 0, "control.learning_rates": [3e-3], "control.widen": 0,
}  # fmt: skip


def notebook() -> nbformat.NotebookNode:
    return nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)


def test_the_notebook_is_kept_without_outputs():
    cells = [cell for cell in notebook().cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs_and_shows_progress_trials_samples_and_report(tmp_path: Path):
    run = notebook()
    (given,) = (cell for cell in run.cells if "settings = {}" in cell.source)
    given.source = given.source.replace("settings = {}", f"settings = {SETTINGS}")
    NotebookClient(run, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()

    def outputs(begin: str) -> list[nbformat.NotebookNode]:
        (cell,) = (cell for cell in run.cells if cell.cell_type == "code" and cell.source.startswith(begin))
        return list(cell.outputs)

    said = [output.get("text", "") for cell in run.cells for output in cell.get("outputs", [])]
    assert not any("ipywidgets" in text for text in said)
    searched = outputs("study = cca_ray.tune")
    assert "starting Ray" in "".join(output.text for output in searched if output.output_type == "stream")
    assert searched[-1].data["text/plain"].startswith("study notebook in ")
    assert "final=True" in outputs("study.best")[-1].data["text/plain"]
    assert "rung_2_fid" in outputs("study.trials")[-1].data["text/html"]
    assert any("image/png" in output.get("data", {}) for output in outputs("import matplotlib"))
    assert outputs("study.report")[-1].data["text/html"].startswith("<iframe srcdoc=")
    assert (tmp_path / "runs" / "notebook" / "report" / "report.html").exists()
