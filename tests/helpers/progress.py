"""Progress objects for tests."""

from lora_atelier.core.progress import Cancelled, SilentProgress


class CancelAfter(SilentProgress):
    """Cancels at the n-th check."""

    def __init__(self, num_checks: int, error: BaseException | None = None) -> None:
        self.num_checks = num_checks
        self.error = error if error is not None else Cancelled("cancelled by the test")

    def check(self) -> None:
        self.num_checks -= 1
        if self.num_checks <= 0:
            raise self.error


class RecordingProgress(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int, str]] = []
        self.lines: list[str] = []
        self.num_previews = 0

    def update(self, done: int, total: int, text: str = "") -> None:
        self.updates.append((done, total, text))
        self.check()

    def status(self, text: str) -> None:
        self.lines.append(text)

    def preview(self, image: object) -> None:
        self.num_previews += 1
