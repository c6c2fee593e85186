"""The door to accelerate: a run's curves in TensorBoard, W&B, MLflow and others, as it trains."""

from collections.abc import Iterator
from contextlib import contextmanager

from comp.errors import UserError
from comp.options import flat
from comp.progress import Reporter
from comp.train.run import Run


@contextmanager
def tracked(run: Run, kind: str, reporter: Reporter) -> Iterator[None]:
    """What the reporter measures in the block goes to the tracker `kind` too.

    Of those that write files, as TensorBoard, they are in runs/<run>/curves.
    """
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    except ImportError:
        raise UserError("TRACK needs accelerate: pip install accelerate tensorboardx") from None
    here = [str(each) for each in get_available_trackers()]
    if kind not in here:
        known = ", ".join(map(str, LOGGER_TYPE_TO_CLASS))
        raise UserError(
            f"no tracker {kind!r} is installed, but {', '.join(here) or 'none'}: install it by pip;"
            f" accelerate knows {known}"
        )
    make = LOGGER_TYPE_TO_CLASS[kind]
    has_files = make.requires_logging_directory
    tracker = make("curves", run.folder) if has_files else make(run.name)
    tracker.start()
    tracker.store_init_configuration(flat(run.recipe))
    tidy = str.maketrans(" ", "-")  # TensorBoard would write _
    reporter.tracker = lambda figures, step: tracker.log(
        {name.translate(tidy): value for name, value in figures.items()}, step=step
    )
    try:
        yield
    finally:
        reporter.tracker = None
        tracker.finish()
