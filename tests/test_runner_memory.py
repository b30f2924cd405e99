"""Following live attempts: nothing is read twice, one transaction a round, and the judge is asked at its own pace."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

import runner.ingest
from provisioning.base import HostLost, ProcessIdentity
from runner.follow import JUDGING_SHARE, ROUND_CHUNKS, Follow, Pace
from runner.home import Home
from runner.launch_spec import attempt_dir
from runner.records import Health, RunState
from runner.schedule import Phase
from runner.spec.models import from_json, to_json
from runner.spec.read import read_arm
from runner.store import changes, tables
from runner.store.facts import StoredRun, open_runs
from runner.store.session import Session
