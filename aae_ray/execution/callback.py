"""Ray Tune's callback: hands every event to a listener, and keeps the study alive when recording one goes wrong."""

import logging
from typing import Any, Protocol

from ray import tune

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Who wants to know what becomes of the trials."""

    def trial_began(self, trial_id: str, params: dict[str, Any]) -> None: ...

    def trial_reported(self, trial_id: str, result: dict[str, Any]) -> None: ...

    def trial_saved(self, trial_id: str, checkpoint: Any) -> None: ...

    def trial_ended(self, trial_id: str, *, failed: bool = False, message: str | None = None) -> None: ...


class StudyCallback(tune.Callback):  # type: ignore[misc]
    """Runs in the driver. Tune pickles its callbacks into the experiment's state: the listener stays behind."""

    def __init__(self, listener: Listener) -> None:
        self.listener: Listener | None = listener

    def __getstate__(self) -> dict[str, Any]:
        return {"listener": None}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("trial_began", trial.trial_id, dict(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._tell("trial_reported", trial.trial_id, result)

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        self._tell("trial_saved", trial.trial_id, checkpoint)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("trial_ended", trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error() if hasattr(trial, "get_error") else None
        self._tell("trial_ended", trial.trial_id, failed=True, message=_last_line(error))

    def _tell(self, event: str, *arguments: Any, **named: Any) -> None:
        if self.listener is None:
            return
        try:
            getattr(self.listener, event)(*arguments, **named)
        except Exception:  # a record must never cost a study
            logger.exception("recording %s failed", event)


def _last_line(error: BaseException | None) -> str | None:
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1] if lines else None
