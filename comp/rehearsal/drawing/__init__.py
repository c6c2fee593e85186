"""Pictures of cats and dogs, drawn by the project itself, and an edition of the competition made of them."""

from comp.rehearsal.drawing.edition import write_edition
from comp.rehearsal.drawing.picture import draw

__all__ = ["draw", "write_edition"]
