"""Work outside requests that obeys the switch and is counted: jobs and consumers."""

from types import TracebackType

from .decision import Decision
from .stores._admission import Admission


class AdmittedWork:
    """What ``MaintenanceGuard.admit`` returns."""

    def __init__(self, decision: Decision) -> None:
        self._decision = decision
        self._admission: Admission | None = None

    def __enter__(self) -> None:
        if self._admission is not None:
            # A second count in its place would let go of the first one's work.
            raise RuntimeError("already entered; call guard.admit() for each work")
        switch = self._decision.switch
        worker = switch.worker
        if switch.polled is not None:
            switch.polled.check(switch.name)
        if not worker.joined:
            worker.join()
        admission = worker.admit("work")
        if self._decision.switch.in_force(admission.state):
            admission.release()
            admission.__exit__(None, None, None)
            raise self._decision.error(admission.state)
        self._admission = admission

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        admission, self._admission = self._admission, None
        if isinstance(error, GeneratorExit):
            # A generator that is closed has not been cancelled in the middle of work.
            kind = error = traceback = None
        if admission is not None:
            admission.__exit__(kind, error, traceback)

    async def __aenter__(self) -> None:
        await self._decision.switch.join()
        self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)
