"""The tests that the pytest plugin collects; imported only if there are any."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rnn_backends import LSTMBackend, get_backend

from .check import about, changed, check_backend, fresh_seed, quiet_single_thread, similar_defect
from .laws.catalogue import select
from .report.model import Report
from .report.terminal import failure_text
from .suite.verdict import LawResult
from .waivers import Waiver, apply, read

if TYPE_CHECKING:
    from .pytest_plugin import Laws


@cache
def _seed() -> int:
    """One seed for the whole session, unless one is given."""
    return fresh_seed()


class LawsCollector(pytest.Collector):
    """All laws of one :func:`~rnn_conformance.pytest_plugin.laws`."""

    def __init__(self, *, requested: Laws, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.requested = requested

    def option(self, name: str) -> Any:
        """The command line's option, else the test file's."""
        given = self.config.getoption(f"rnn_{name}", None)
        return given if given else self.requested.options.get(name)

    def collect(self) -> Iterator[LawItem]:
        """One test per law and backend."""
        backends = self.requested.backends or tuple(self.config.getoption("rnn_backend"))
        if not backends:
            raise self.CollectError("no backend is named: pytest --pyargs rnn_conformance --rnn-backend NAME")
        parts = tuple(self.config.getoption("rnn_law")) or self.requested.options["only"]
        try:
            values = [get_backend(b) if isinstance(b, str) else b for b in backends]
            laws = select(parts, self.option("profile"))
            waivers = self._waivers()
        except (ValueError, ImportError) as error:  # unknown or broken backend, unknown law, bad waiver
            raise self.CollectError(str(error)) from None
        for backend in values:
            for law in laws:
                yield LawItem.from_parent(
                    self, name=f"{law}[{backend.name}]", law=law, backend=backend, waivers=waivers
                )

    def _waivers(self) -> list[Waiver]:
        given = self.config.getoption("rnn_waivers")
        if given:
            return read(self.config.invocation_params.dir / given)
        beside = self.requested.options["waivers"]
        return read(Path(self.path).parent / beside) if beside else []


class LawBrokenError(Exception):
    """A law does not hold; carries the result."""

    def __init__(self, result: LawResult) -> None:
        super().__init__(result.message)
        self.result = result


class LawItem(pytest.Item):
    """One law over one backend."""

    parent: LawsCollector

    def __init__(self, *, law: str, backend: LSTMBackend, waivers: list[Waiver], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.law, self.backend, self.waivers = law, backend, waivers

    def runtest(self) -> None:
        """Run the law: a declined one is a skip with its reason, a waived failure an expected failure."""
        report = self._report()
        (result,) = report.results
        self.user_properties.append(("rnn_law", result.state))
        if report.failures:
            raise LawBrokenError(report.failures[0])
        if result.waived:
            pytest.xfail(result.waived)
        if result.verdict == "declined":
            raise pytest.skip.Exception(result.message, _use_item_location=True)

    def _report(self) -> Report:
        option, given = self.parent.option, self.config.getoption
        seed = given("rnn_seed")
        with quiet_single_thread():
            report = check_backend(
                self.backend,
                profile=option("profile"),
                device=option("device"),
                laws=(self.law,),
                seed=_seed() if seed is None else seed,
                shrink=not given("rnn_no_shrink"),
                strict=option("strict"),
            )
            report = apply(self.waivers, report, self.backend)
            for result in report.failures:
                report = changed(report, self.law, looks_like=similar_defect(result, option("device")) or "")
        self.ran = report.header
        return report

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The law, the failure, the smallest failing case and the commands that run it again."""
        if not isinstance(excinfo.value, LawBrokenError):
            return super().repr_failure(excinfo, style)
        text = failure_text(excinfo.value.result, about(self.law), self.ran.device)
        return f"{text}\n  or      pytest '{self.nodeid}' --rnn-seed {self.ran.seed}"

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The test's location, and the headline of its failure."""
        return self.path, 0, f"{self.backend.name}: {self.law}"
