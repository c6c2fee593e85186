"""From Kaggle's archive to a score: data, train, predict, submit. In a notebook: comp.notebook."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["classify_photos", "finished_run", "manifest", "oof_table", "predictions"]

if TYPE_CHECKING:
    from comp.notebook import classify_photos, finished_run, manifest, oof_table, predictions


def __getattr__(name: str) -> Any:  # pandas takes a second, which the command line does not need
    if name in __all__:
        from comp import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module comp has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
