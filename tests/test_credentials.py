"""Credentials that a job would be given by its configuration are refused: they would stand in the run's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from glci_dist import compose
from glci_dist.errors import UserError
from glci_dist.slurm import inherited, snapshot
from glci_dist.slurm.submit import requests
from tests.data.shards_help import glci

PLAIN = ["data.shards=shards/train", "name=run", "cluster=local"]

SECRETS = [
    ("cluster.environment.HF_TOKEN=hunter2", "HF_TOKEN"),
    ("cluster.environment.hf_token='hunter2'", "hf_token"),
    ("cluster.environment={AWS_SECRET_ACCESS_KEY: hunter2}", "AWS_SECRET_ACCESS_KEY"),
    ("+cluster.environment.WANDB_API_KEY=hunter2", "WANDB_API_KEY"),
    ("cluster.environment.PGPASSWORD=hunter2,x", "PGPASSWORD"),
    ("cluster.environment.HTTPS_PROXY=http://u:hunter2@proxy", "HTTPS_PROXY"),
    ("cluster.environment.http_proxy='u:hunter2@proxy:3128'", "http_proxy"),
    ("cluster.environment.DATA='https://h/x?sig=hunter2'", "DATA"),
    ("cluster.environment.MY_TOKEN='${oc.env:GLCI_TEST}'", "MY_TOKEN"),
    ("cluster.setup=['module load cuda; export HF_TOKEN=\"hunter2\"']", "cluster.setup"),
    ("cluster.setup=['curl https://u:hunter2@h/x']", "cluster.setup"),
    ("cluster.setup=['curl https://u:hunter2@$HOST/$WHAT']", "cluster.setup"),
    ("cluster.environment.X='http://u:hunter2$y@h'", "cluster.environment.X"),
    ("cluster.sbatch.export='ALL,DB_PASSWORD=hunter2'", "cluster.sbatch.export"),
    ("cluster.sbatch.export=ALL,DB_PASSWORD=hunter2", "cluster.sbatch.export"),
]


@pytest.mark.parametrize("command", ["submit", "explain", "train", "config"])
@pytest.mark.parametrize(("word", "named"), SECRETS)
def test_a_credential_for_a_job_is_refused_by_its_name_and_printed_nowhere(
    command: str,
    word: str,
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLCI_TEST", "hunter2")
    if command in ("train", "config") and ("=hunter2,x" in word or "=ALL," in word):
        pytest.skip("a sweep is for submissions")
    assert glci(command, *PLAIN, f"runs={tmp_path}", word) == 2
    printed = capsys.readouterr()
    assert named in printed.err.splitlines()[-1]
    assert "export it where you submit" in printed.err
    assert "hunter2" not in printed.out + printed.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "word",
    [
        "cluster.environment={TOKENIZERS_PARALLELISM: 'false', AWS_SHARED_CREDENTIALS_FILE: /home/me/.aws/credentials}",
        "cluster.environment={HF_TOKEN_PATH: /home/me/token, NCCL_IB_PKEY: '0', AWS_ACCESS_KEY_ID: me, HF_TOKEN: null}",
        "cluster.environment.HF_TOKEN=null",
        "cluster.environment={HTTPS_PROXY: 'http://proxy:3128', no_proxy: localhost}",
        "cluster.setup=['export HF_TOKEN=$(cat ~/.hf_token)', 'export http_proxy=http://$WHO:$(cat pw)@proxy']",
        "cluster.setup=['export http_proxy=\"http://me:$PW@proxy\" A_TOKEN=`cat ~/.a`']",
        "cluster.setup=['curl \"https://h/x?sig=$SIG&se=$END\"', 'export A_TOKEN=\"$THE_TOKEN\"']",
        "data.shards='https://h/x?sig=${oc.env:GLCI_TEST}'",
        "cluster.sbatch={export: 'ALL,HF_HOME=/data', mail-user: me@host, comment: 'see https://h/x'}",
    ],
)
def test_what_only_says_where_a_credential_is_passes(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLCI_TEST", "hunter2")
    (made,) = requests([*PLAIN, word])
    assert made.config.name == "run"


def test_a_credential_in_the_configurations_that_a_job_would_copy_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("# see https://h/x?token=1\nshards: https://h/x?sig=${oc.env:SIG}\n")
    monkeypatch.setattr(compose, "config_folder", lambda: tmp_path)
    snapshot.check()
    (tmp_path / "mine.yaml").write_text("data:\n  shards: http://me:hunter2@host/x\n")
    with pytest.raises(UserError, match=r"mine\.yaml, line 2: .*oc\.env") as raised:
        snapshot.check()
    assert "hunter2" not in str(raised.value)


def test_a_submission_looks_at_the_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(snapshot, "check", lambda: looked.append(True))
    requests(PLAIN)
    assert looked == [True]


def test_variables_that_a_shell_would_have_sbatch_export_are_named_without_their_values() -> None:
    cluster = compose.load([*PLAIN, "cluster=slurm"]).cluster
    (line,) = inherited.lines(cluster, {"SBATCH_EXPORT": "ALL,HF_TOKEN=hunter2"})
    assert "SBATCH_EXPORT (say cluster.sbatch.export)" in line
    assert "hunter2" not in line
