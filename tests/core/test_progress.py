import pytest

from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from lora_atelier.core.progress import Cancelled, Progress, SilentProgress


def test_every_progress_keeps_the_protocol():
    progresses: list[Progress] = [SilentProgress(), CancelAfter(10), RecordingProgress()]
    for progress in progresses:
        progress.status("x")
        progress.update(1, 2, "x")
        progress.check()


def test_update_checks_and_cancel_is_no_error():
    progress = CancelAfter(2)
    progress.update(1, 3)
    with pytest.raises(Cancelled) as caught:
        progress.update(2, 3)
    assert not isinstance(caught.value, Exception)
