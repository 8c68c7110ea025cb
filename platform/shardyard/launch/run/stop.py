"""The request to end a run, as an object: made by a signal, a button or another thread, before or while it trains."""

from __future__ import annotations

from shardyard.tracking.run.folder import RunFolder, StopReason


class Stop:
    """Ends the run that it is bound to after the step at hand, with a checkpoint.

    A request that comes before there is a run is kept, and ends the run before its first step.

    reason: of the first request; None before.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._folder: RunFolder | None = None

    def request(self, reason: StopReason = "interrupt") -> None:
        """Ask the run to end. May be called from the handler of a signal, and again.

        Raises:
            RunFolderError: the folder of the run cannot be written.
        """
        self.reason = self.reason or reason
        if self._folder is not None:
            self._folder.request_stop(self.reason)

    def bind(self, folder: RunFolder) -> None:
        """From now on requests go to this run; one that was made before goes to it at once.

        Raises:
            RunFolderError: the folder of the run cannot be written.
        """
        self._folder = folder
        if self.reason is not None:
            folder.request_stop(self.reason)
