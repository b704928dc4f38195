"""MLflow, by way of a journal: the only importer of mlflow.

May import `training` and what is above it.
"""
