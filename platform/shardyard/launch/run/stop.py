"""The stop signal of a run: set by a signal handler, a button or another thread, before or during training."""

from __future__ import annotations

from shardyard.tracking.run.folder import RunFolder, StopReason


class Stop:
    """Stops the run that it is bound to after the current step, with a checkpoint.

    An earlier request is kept and ends the run before its first step.

    reason: of the first request; None without one.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._folder: RunFolder | None = None

    def request(self, reason: StopReason = "interrupt") -> None:
        """Request a stop. May be called from a signal handler, and repeatedly.

        Raises:
            RunFolderError: the folder of the run cannot be written.
        """
        self.reason = self.reason or reason
        if self._folder is not None:
            self._folder.request_stop(self.reason)

    def bind(self, folder: RunFolder) -> None:
        """Bind to a run; an earlier request is passed on immediately.

        Raises:
            RunFolderError: the folder of the run cannot be written.
        """
        self._folder = folder
        if self.reason is not None:
            folder.request_stop(self.reason)
