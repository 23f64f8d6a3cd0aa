"""Waivers: known failures, each with a reason, a link, the failing case and an expiry date.

A file holds any number of these::

    [[waiver]]
    backend = "mine"
    law = "double_backward"
    reason = "the kernel has no second derivative yet"
    link = "https://github.com/me/mine/issues/3"
    token = "T2.B1.I1.H1.f64.s0"
    expires = 2027-03-01

Waivers are strict: the case is run again, and if it passes, that is a failure until the waiver is deleted. An unknown
law, a missing reason or a past date is an error before anything runs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, date, datetime
from pathlib import Path

import torch
from rnn_backends import LSTMBackend

from .check import changed, check_token, replay
from .laws.catalogue import LAWS
from .report.model import Report
from .suite.names import exact
from .suite.verdict import LawResult


class WaiverError(ValueError):
    """An invalid waivers file."""


@dataclass(frozen=True)
class Waiver:
    """One known failure.

    Attributes:
        backend: its exact name.
        law: its exact name.
        reason: why the failure is excused.
        link: to the discussion of the failure.
        token: of the failing case, from the report.
        expires: the last day on which it is excused.
        device: on which the case fails.
    """

    backend: str
    law: str
    reason: str
    link: str
    token: str
    expires: date
    device: str = "cpu"


def read(file: Path, today: date | None = None) -> list[Waiver]:
    """Read a file.

    Raises:
        WaiverError: the file is invalid, or a waiver in it is incomplete, unknown, duplicate or expired.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WaiverError(f"{file}: {error}") from None
    rows = data.get("waiver", [])
    if set(data) - {"waiver"} or not isinstance(rows, list):
        raise WaiverError(f"{file}: expected nothing but [[waiver]] tables, found {', '.join(sorted(data))}")
    found: dict[tuple[str, str, str], Waiver] = {}
    for number, row in enumerate(rows, 1):
        try:
            waiver = _waiver(row, today or datetime.now(UTC).date())
            if found.setdefault((waiver.backend, waiver.law, waiver.device), waiver) is not waiver:
                raise WaiverError(f"{waiver.law} is waived twice for {waiver.backend} on {waiver.device}")
        except ValueError as error:
            raise WaiverError(f"{file}, waiver {number}: {error}") from None
    return list(found.values())


def _waiver(row: object, today: date) -> Waiver:
    if not isinstance(row, dict):
        raise WaiverError("expected a [[waiver]] table")
    known = {field.name: field for field in fields(Waiver)}
    missing = [name for name, field in known.items() if field.default is MISSING and name not in row]
    if missing or set(row) - set(known):
        unknown = ", ".join(sorted(set(row) - set(known)))
        raise WaiverError(f"it has no {', '.join(missing)}" if missing else f"unknown key: {unknown}")
    for name, value in row.items():
        day = name == "expires"
        if type(value) is not (date if day else str) or not value:
            raise WaiverError(f"{name} = {value!r} is not {'a date like 2027-03-01' if day else 'a string'}")
    waiver = Waiver(**row)
    check_token(exact(waiver.law, LAWS, "law"), waiver.token)
    _check_device(waiver.device)
    if waiver.expires < today:
        raise WaiverError(
            f"{waiver.law} for {waiver.backend} expired on {waiver.expires}: fix the failure or renew the waiver"
        )
    return waiver


def _check_device(name: str) -> None:
    try:
        torch.device(name)
    except RuntimeError as error:
        raise WaiverError(f"device = {name!r}: {str(error).splitlines()[0]}") from None


def apply(
    waivers: Sequence[Waiver],
    report: Report,
    backend: LSTMBackend,
    on_replay: Callable[[str], object] = lambda law: None,
) -> Report:
    """The report with waived failures excused and outdated waivers counted as failures."""
    for waiver in waivers:
        mine = waiver.backend == report.backend and waiver.device == report.header.device
        found = next((r for r in report.results if r.law == waiver.law), None)
        if not mine or found is None:
            continue  # for another backend or device, or a law that did not run
        on_replay(waiver.law)
        report = _apply(waiver, report, found, replay(backend, waiver.law, waiver.token, waiver.device))
    return report


def _apply(waiver: Waiver, report: Report, found: LawResult, again: LawResult) -> Report:
    if again.ok:
        passes = f"{again.label}, so this waiver is out of date"
        also = f" The run found another case: {found.message}" if not found.ok else " Delete it"
        message = f"the waived case {waiver.token} was run again: {passes} (waived as: {waiver.reason}).{also}"
        return changed(report, waiver.law, verdict="failed", message=message, token=found.token or waiver.token)
    reason = f"{waiver.reason} ({waiver.link}, until {waiver.expires})"
    if found.ok:  # the drawn cases missed the waived failure
        return changed(
            report, waiver.law, verdict=again.verdict, message=again.message, token=again.token, waived=reason
        )
    return changed(report, waiver.law, waived=reason)
