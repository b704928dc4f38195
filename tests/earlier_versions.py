"""What version 0.1.0 left: studies in an archive, and a summary."""

from pathlib import Path

ARCHIVE = Path(__file__).parent / "fixtures" / "studies-0.1.0.tar.xz"
OLD_SUMMARY = """
{"sizes": [{
  "size": "digits_s", "family": "llamagen", "params": 9472,
  "fid_base": 24.4, "fid_guided": 18.0, "fid_control": 23.7, "fid_cca": 17.1,
  "std_base": 0.5, "std_guided": 0.4, "std_control": 0.3, "std_cca": 0.21,
  "inception_score_base": 7.8, "inception_score_guided": 8.1, "inception_score_control": 7.8,
  "inception_score_cca": 8.2,
  "guidance_scale": 1.5, "lambda": 1.0, "learning_rate": 0.0004, "trials": 3,
  "winner": {"learning_rate": 0.0004, "epochs": 5}, "trial": 2,
  "checkpoint": "runs/finished/digits_s/winner.pt", "control_learning_rate": 0.001,
  "finalists": [
    {"trial": 2, "learning_rate": 0.0004, "epochs": 5, "fid": 17.1, "std": 0.21, "models": 1, "tied": true},
    {"trial": 0, "learning_rate": 0.0027, "epochs": 9, "fid": 17.2, "std": 0.27, "models": 1, "tied": false}
  ],
  "trade_off": [
    {"trial": 2, "learning_rate": 0.0004, "epochs": 5, "fid": 17.0, "inception_score": 8.1, "front": true}
  ],
  "seconds": 17.9, "protocol": "faa0a5cd6e", "device_hours": 0.0002, "device_hours_by_type": {"CPU": 0.0002},
  "device": "CPU", "mlflow_key": "a/digits_s/c8", "mlflow_run_id": "fdc1", "experiment": "cca_ray llamagen digits",
  "winner_key": "a/digits_s/c8/digits_s-search-0002", "registered_model": "cca_ray-llamagen-digits-digits_s"
}]}
"""
