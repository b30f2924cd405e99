"""The tables of a home's database. Private: the public doors are `status --json` and `report/data/*.csv`.

Times are seconds since the epoch, steps are optimizer steps. A value of NULL in `points` is nan (SQLite has no nan);
infinities are stored as they are. Only the controller writes here, except `requests`, which only commands write.

    studies 1─n runs 1─n attempts
                runs 1─n series 1─n points      (run, attempt, name) is a series; (series, step) is a point
                runs 1─n files                  how far each metrics file was read, in the transaction of its points
                runs 1─n verdicts
    requests 1─0..1 answers
    leases   1─n attempts
    hosts                                       machines that are reached over ssh
    leases   1─n quarantines                    slots that may not be used, and why
    events   1─n notifications                  every state change with its reason; who was told of it
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

METADATA = MetaData()

home = Table(
    "home",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("home_id", String, nullable=False),  # part of the label of everything this home ever rents
    Column("created", Float, nullable=False),
)

controller = Table(
    "controller",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("epoch", Integer, nullable=False),  # fencing: every write transaction checks that it is still ours
    Column("pid", Integer, nullable=False),
    Column("started", Float, nullable=False),
)

studies = Table(
    "studies",
    METADATA,
    Column("study", String, primary_key=True),
    Column("document", JSON, nullable=False),  # the study-level keys, alike in all arms
    Column("source", String, nullable=False),  # the arm file they were first read from
    Column("lint", JSON, nullable=False),
    Column("created", Float, nullable=False),
)

leases = Table(
    "leases",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("provider", String, nullable=False),
    Column("label", String, nullable=False, unique=True),
    Column("host", String, nullable=False),
    Column("state", String, nullable=False),  # intended | owned | released
    Column("price_usd_per_h", Float, nullable=False),
    Column("slots_requested", Integer),
    Column("created", Float, nullable=False),
    Column("released", Float),
    Column("document", JSON),  # of what is paid for: what was ordered, its stage, its limits; NULL = it is free
    Column("proof", Text),  # what the provider said when it was given back
    Column("charged_usd", Float),  # what the provider billed; NULL = not known (yet)
)

hosts = Table(
    "hosts",
    METADATA,
    Column("name", String, primary_key=True),
    Column("document", JSON, nullable=False),  # how it is reached; keys by the paths of their files
    Column("listed", Boolean, nullable=False),  # stands in the newest list: runs may be placed on it
)

runs = Table(
    "runs",
    METADATA,
    Column("run", String, primary_key=True),  # its folder below the home: study/arm-s0-id
    Column("id", String, nullable=False),  # 8 hex digits; two studies may hold the same work under one id
    Column("study", String, ForeignKey("studies.study"), nullable=False),
    Column("arm", String, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("arm_order", Integer, nullable=False),  # place of the arm in its launch: the queue is (launch, seed, arm)
    Column("launch", Integer, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),  # higher goes first; nothing running makes way
    Column("provider", String, nullable=False, server_default="local"),  # where its attempts are placed
    Column("wanted", JSON),  # what a machine that is rented for it must be like; NULL = none is rented
    Column("wave", Integer),  # runs of one launch and one wave start together; NULL = as soon as a slot is free
    Column("identity", String, nullable=False),
    Column("arm_document", JSON, nullable=False),
    Column("snapshot", JSON, nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("steps_total", Integer),
    Column("state", String, nullable=False),
    Column("rule", String, nullable=False, default=""),  # of aborted(rule), failed(class), lost(reason)
    Column("reason", Text, nullable=False, default=""),
    Column("health", String, nullable=False, default="unknown"),
    Column("verdict", JSON),
    Column("stop_wanted", String),  # a person's wish, kept until it is carried out
    Column("resume_from", String),  # best | last: where the next attempt starts
    Column("overridden", JSON, nullable=False),  # rules a person has overruled for this run
    Column("parent", String),  # the run that this one was rescued from
    Column("initial_checkpoint", JSON),  # {run, step} of the checkpoint that it begins with; NULL = new weights
    Column("autopsy_attempt", Integer),  # number of an autopsy that a person asked for, until it has ended
    Column("superseded_by", String),
    Column("retries_used", Integer, nullable=False, server_default="0"),  # since a person last asked for an attempt
    Column("best_step", Integer),  # of the primary, kept with its points so that a status need not read them
    Column("best_value", Float),
    Column("created", Float, nullable=False),
    Column("changed", Float, nullable=False),
    UniqueConstraint("study", "arm", "seed", "generation"),
)
Index("runs_by_state", runs.c.state)
Index("runs_by_study", runs.c.study, runs.c.state, runs.c.changed)  # asked in every round

attempts = Table(
    "attempts",
    METADATA,
    Column("run", String, ForeignKey("runs.run"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("phase", String, nullable=False),  # intended | live | ended | gone
    Column("lease", Integer, ForeignKey("leases.id"), nullable=False),
    Column("slot", JSON, nullable=False),
    Column("identity", JSON),  # of its supervisor
    Column("resumed_from", Integer),
    Column("stop_reason", String),
    Column("probe_every_steps", Integer),  # cadence of extra validations that it is asked for; NULL = none
    Column("suspected", JSON),  # {rule, reason} of what is wrong with its process, once that may stop it
    Column("exit", JSON),
    Column("failure", String),  # class of the failure that ended it, NULL for any other end
    Column("before", JSON),  # what its slot looked like before its start: GPU memory in use, MiB by UUID
    Column("sync", String, nullable=False),  # pending | done | waived
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
)

series = Table(
    "series",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run", String, ForeignKey("runs.run"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("name", String, nullable=False),
    Column("points", Integer, nullable=False),
    Column("first_step", Integer, nullable=False),
    Column("first_time", Float, nullable=False),
    Column("last_step", Integer, nullable=False),
    Column("last_value", Float),
    Column("last_time", Float, nullable=False),
    UniqueConstraint("run", "attempt", "name"),
)

points = Table(
    "points",
    METADATA,
    Column("series", Integer, ForeignKey("series.id"), primary_key=True, autoincrement=False),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("value", Float),
    Column("time", Float, nullable=False),
    sqlite_with_rowid=False,
)

files = Table(
    "files",
    METADATA,
    Column("run", String, ForeignKey("runs.run"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("path", String, primary_key=True),
    Column("inode", Integer, nullable=False),
    Column("offset", Integer, nullable=False),
    Column("skipping", Boolean, nullable=False),  # inside a line that is too long
    Column("state", JSON),  # what a format needs to go on, for example a CSV header
    Column("lines", Integer, nullable=False),
    Column("rejected", Integer, nullable=False),
    Column("example", Text, nullable=False, default=""),
    Column("restarts", Integer, nullable=False),
    Column("head", String, nullable=False, server_default=""),  # stands for its first bytes: was it written anew?
)

verdicts = Table(
    "verdicts",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run", String, ForeignKey("runs.run"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("time", Float, nullable=False),
    Column("health", String, nullable=False),
    Column("action", String, nullable=False),
    Column("rule", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("findings", JSON, nullable=False),
    Column("as_of", JSON, nullable=False),
)
Index("verdicts_by_run", verdicts.c.run)

events = Table(
    "events",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("time", Float, nullable=False),
    Column("study", String),
    Column("run", String),
    Column("attempt", Integer),
    Column("step", Integer),
    Column("what", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("data", JSON),
)
Index("events_by_run", events.c.run)

Index("events_by_what", events.c.what)

quarantines = Table(
    "quarantines",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("lease", Integer, ForeignKey("leases.id"), nullable=False),
    Column("slot", String, nullable=False),
    Column("gpu_uuids", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("since", Float, nullable=False),
    Column("lifted", Float),  # NULL = in force
)

notifications = Table(
    "notifications",
    METADATA,
    Column("event", Integer, ForeignKey("events.id"), primary_key=True, autoincrement=False),
    Column("state", String, nullable=False),  # waiting | sent | failed
    Column("tries", Integer, nullable=False),
    Column("said", Text, nullable=False, server_default=""),
    Column("changed", Float, nullable=False),
)
Index("notifications_by_state", notifications.c.state)

requests = Table(
    "requests",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("time", Float, nullable=False),
    Column("kind", String, nullable=False),  # launch | stop | resume | extend | autopsy
    Column("payload", JSON, nullable=False),
)

answers = Table(
    "answers",
    METADATA,
    Column("request", Integer, ForeignKey("requests.id"), primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("accepted", Boolean, nullable=False),
    Column("message", Text, nullable=False),
)
