"""The end of a run: it is written, whatever the error says."""

from typing import Any, cast
from uuid import UUID

import pytest

from shared.db.database import Database
from shared.errors import BadInput, Fenced, Permanent
from shared.ledger.runs import Claim, Runs
from tests.fakes.fake_ledger import FakeCommit

CLAIM = Claim(UUID(int=7), epoch=3, attempt=1)


@pytest.fixture
def commit() -> FakeCommit:
    return FakeCommit()


@pytest.fixture
def runs(commit: FakeCommit) -> Runs:
    return Runs(cast(Database, None), commit)


async def test_a_run_ends_with_its_output_under_its_epoch(runs: Runs, commit: FakeCommit) -> None:
    await runs.succeed(CLAIM, {"answer": 42}, {"level": "L0"})
    (row,) = commit.rows
    assert (row["state"], row["epoch"], row["output"], row["report"]) == (
        "succeeded",
        3,
        {"answer": 42},
        {"level": "L0"},
    )


@pytest.mark.parametrize("output", [object(), float("nan"), "a\x00b"])
async def test_an_output_that_cannot_be_stored_is_the_agents_mistake(runs: Runs, output: Any) -> None:
    with pytest.raises(BadInput, match=r"^the agent's output is not"):
        await runs.succeed(CLAIM, output, {})


async def test_a_run_ends_with_its_error(runs: Runs, commit: FakeCommit) -> None:
    await runs.fail(CLAIM, Permanent("no luck", n=1), {"level": "L0"})
    (row,) = commit.rows
    assert row["error"] == {"code": "permanent", "message": "no luck", "context": {"n": 1}}


@pytest.mark.parametrize(
    ("error", "report"),
    [
        (Permanent("ValueError: a\x00b"), {}),
        (Permanent("no", what=object()), {}),
        (Permanent("no"), {"reasons": ["a\x00b"]}),
    ],
)
async def test_an_error_that_cannot_be_stored_ends_the_run_all_the_same(
    runs: Runs, commit: FakeCommit, error: Permanent, report: dict[str, Any]
) -> None:
    await runs.fail(CLAIM, error, report)
    (row,) = commit.rows
    assert (row["state"], row["error"]["code"], row["report"]) == ("failed", "permanent", {})
    assert row["error"]["message"].startswith("the task failed with permanent, whose text or report is not ")


async def test_a_run_that_belongs_to_another_worker_ends_nothing(runs: Runs, commit: FakeCommit) -> None:
    commit.is_fenced = True
    for end in (runs.succeed(CLAIM, 1, {}), runs.fail(CLAIM, Permanent("no"), {})):
        with pytest.raises(Fenced, match="is no longer at epoch 3"):
            await end
