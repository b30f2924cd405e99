"""Arm files: read, resolved, checked, compared. `read_study_arms` is the front door."""

from runner.spec.consistency import StoredStudy
from runner.spec.models import (
    ResolvedArm,
    TrainerCheck,
    document,
    environment_values,
    from_json,
    study_document,
    to_json,
)
from runner.spec.read import read_study_arms

__all__ = [
    "ResolvedArm",
    "StoredStudy",
    "TrainerCheck",
    "document",
    "environment_values",
    "from_json",
    "read_study_arms",
    "study_document",
    "to_json",
]
