"""What a row of a federation's metrics.jsonl holds, checked when it is read again."""

from invertjax.auditing.attackers import ATTACKERS
from invertjax.base import Row
from invertjax.cli import fields
from invertjax.cli.fields import (
    COUNT,
    DECIBELS,
    FLAG,
    LINE,
    NUMBER,
    SHARE,
    listed,
    nullable,
    one_of,
)

NULLS = ("null_mean_image", "null_random_image", "null_shuffled_update")

_EVERY = {"round": COUNT, "accuracy": nullable(SHARE), "seconds": NUMBER}
_SOME = {
    "dropped": COUNT,
    "clients_dropped": listed(COUNT),
    "model_unchanged": FLAG,
    "epsilon": nullable(NUMBER),
    "delta": NUMBER,
    "epsilon_seen": nullable(NUMBER),
    "psnr_mean": nullable(DECIBELS),
    "verdict": LINE,
    "certified_share": nullable(SHARE),
    "recovered_share": nullable(SHARE),
    "false_certificates": nullable(COUNT),
    **dict.fromkeys(NULLS, DECIBELS),
}
# Of a round whose updates were attacked.
_ATTACKED = {
    "attack": one_of(*ATTACKERS),
    "images": COUNT,
    "psnr_mean": DECIBELS,
    "psnr_std": DECIBELS,
    "psnr_min": DECIBELS,
    "psnr_max": DECIBELS,
    "ssim_mean": nullable(NUMBER),
    "label_recall": SHARE,
    "failed": COUNT,
    "null_mean_image": DECIBELS,
    "update_rms": NUMBER,
    "seconds_attack": NUMBER,
    "verdict": LINE,
}


def check(row: Row) -> None:
    """Refuses a row that no round has.

    Raises:
      ValueError: naming the field that is wrong.
    """
    fields.check(row, _EVERY, _SOME)
    if "attack" in row or row.get("psnr_mean") is not None:
        fields.check(row, _ATTACKED)
    if "epsilon_seen" in row:
        fields.check(row, {"delta": NUMBER})


def check_order(rows: list[Row], rounds: int) -> None:
    """Refuses rounds that are there twice, or that the run has not.

    Raises:
      ValueError: naming the first that is wrong.
    """
    last = -1
    for row in rows:
        if not last < row["round"] <= rounds:
            raise ValueError(
                f"round {row['round']} comes after round {last} of {rounds}"
            )
        last = row["round"]
