"""The one protocol by which long work reports, shows previews and is cancelled."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image


class Cancelled(BaseException):
    """The person asked to stop. Not an Exception, so that no handler of errors takes it for one.

    Hosts with a cancel exception of their own raise that instead; callers let whatever comes pass through.
    """


class Progress(Protocol):
    """What long work is given: it reports here, and learns here that it should stop."""

    def check(self) -> None:
        """Raises the host's own cancel exception, whatever its base class, when the person asked to stop."""

    def update(self, done: int, total: int, text: str = "") -> None:
        """Reports that ``done`` of ``total`` units are finished; also checks."""

    def status(self, text: str) -> None:
        """Shows one line about what is being done now."""

    def preview(self, image: "Image.Image") -> None:
        """Shows a picture of the work as it stands."""


class SilentProgress:
    """Reports to nobody and never cancels."""

    def check(self) -> None:
        """Never cancels."""

    def update(self, done: int, total: int, text: str = "") -> None:
        """Checks, so that a subclass which cancels in :meth:`check` cancels here too."""
        self.check()

    def status(self, text: str) -> None:
        """Shows nothing."""

    def preview(self, image: "Image.Image") -> None:
        """Shows nothing."""
