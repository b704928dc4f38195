"""summary.json: its schema in the docs, and what version 0.1.0 wrote."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from cca_ray.contracts import FID, INCEPTION_SCORE, OLD_METRICS, OLD_OBJECTIVES, OLD_ROLES, SizeSummary, StudySummary
from cca_ray.registry import OBJECTIVES, metric_info
from tests.earlier_versions import OLD_SUMMARY
from tests.studies import summary_of

SCHEMA = Path(__file__).parent.parent / "docs" / "summary.schema.json"


def test_the_schema_in_the_docs_is_that_of_the_summary():
    """To write it anew: python -m tests.test_summary."""
    assert json.loads(SCHEMA.read_text()) == StudySummary.model_json_schema()


def test_what_is_said_of_old_studies_is_what_the_plug_ins_say():
    """Contracts know it by themselves, for they import no plug-in."""
    assert {name: OBJECTIVES.get(name).label for name in OLD_OBJECTIVES} == OLD_OBJECTIVES
    assert [metric_info(name) for name in OLD_METRICS] == [FID, INCEPTION_SCORE]


def test_what_is_written_is_read_back_as_it_was():
    study = StudySummary(sizes=(summary_of(), summary_of("digits_m", float("inf"), params={"epochs": 5})))
    content = study.model_dump_json()
    assert StudySummary.model_validate_json(content) == study
    assert StudySummary.model_validate(json.loads(content)) == study
    assert '"epochs":5}' in content  # whole numbers stay whole


def test_a_summary_of_version_0_1_0_is_read():
    (size,) = StudySummary.model_validate_json(OLD_SUMMARY).sizes
    (row,) = json.loads(OLD_SUMMARY)["sizes"]
    assert list(size.models) == ["base", "guided", "control", "tuned"]
    for role in size.models:
        name = OLD_ROLES[role]
        assert size.value(role) == row[f"fid_{name}"]
        assert size.std(role) == row[f"std_{name}"]
        assert size.models[role].values["inception_score"] == row[f"inception_score_{name}"]
    assert (size.headline.label, size.objective_label, size.parameters) == ("FID", "CCA", 9472)
    assert size.winner == size.finalists[0]
    assert size.winner.params == row["winner"]
    assert size.settings == {"lambda": 1.0, "learning_rate": 0.0004, "epochs": 5}
    assert [finalist.tied for finalist in size.finalists] == [True, False]
    assert size.trade_off[0].values == {"fid": 17.0, "inception_score": 8.1}
    assert size.mlflow.registered_model == row["registered_model"]
    assert SizeSummary.model_validate_json(size.model_dump_json()) == size


def test_a_summary_lacks_no_model_and_no_metric():
    content = summary_of().model_dump()
    del content["models"]["control"]
    with pytest.raises(ValidationError, match="digits_s has no scores of control"):
        SizeSummary.model_validate(content)
    content = summary_of().model_dump()
    del content["models"]["base"]["values"]["inception_score"]
    with pytest.raises(ValidationError, match="digits_s has no inception_score of base"):
        SizeSummary.model_validate(content)


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(StudySummary.model_json_schema(), indent=1) + "\n")
