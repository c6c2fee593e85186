"""One drawn photo of a cat or a dog: place, animal and camera, all by lot."""

import numpy as np
from PIL import Image, ImageFilter

from comp.rehearsal.drawing.anatomy import Posture, anatomy, coat, pose
from comp.rehearsal.drawing.animal import EXTENTS, Animal, paint_animal
from comp.rehearsal.drawing.backdrop import backdrop
from comp.rehearsal.drawing.brush import Brush, Lot
from comp.rehearsal.drawing.things import cover, scatter
from comp.seeds import derive_seed

SIDES_PX = (160, 400)  # no side of a picture is shorter or longer
OVERSAMPLING = 2  # canvas pixels for a pixel of the picture, each way: edges come out soft


def lot(seed: int, *purpose: str) -> Lot:
    """Chance for one purpose; what one purpose uses up shifts no other."""
    return np.random.default_rng(derive_seed(seed, *purpose))


def draw(seed: int, label: int) -> Image.Image:
    """A picture of a cat (0) or a dog (1), RGB; the same for the same arguments, Pillow and numpy.

    The label changes the animal's build and nothing else: size, place, coat, pose, things in the way and camera are the seed's alone.
    """
    width, height = size = picture_size(lot(seed, "size"))
    ground, things = lot(seed, "ground"), lot(seed, "things")
    behind = backdrop(size, lot(seed, "backdrop"))
    canvas = behind.resize((width * OVERSAMPLING, height * OVERSAMPLING), Image.Resampling.NEAREST)
    ink = (24, 18, 20, 170) if ground.random() < 0.5 else None
    brush = Brush.on(canvas, height * OVERSAMPLING, light=int(ground.integers(12)), ink=ink)
    build, fur, stance = (
        anatomy(label, lot(seed, "anatomy")),
        coat(lot(seed, "coat")),
        pose(lot(seed, "pose")),
    )
    scatter(brush, width / height, int(things.integers(3)), things)
    animal = Animal(anatomy=build, coat=fur, pose=stance, hairs=lot(seed, "hairs"))
    paint_animal(stand(brush, width / height, stance.posture, ground), animal)
    cover(brush, width / height, things)
    return photograph(canvas.reduce(OVERSAMPLING), lot(seed, "camera"))


def picture_size(size: Lot) -> tuple[int, int]:
    side, aspect = 160 + size.gamma(1.6, 28), np.exp(np.clip(size.normal(0.12, 0.25), -0.4, 0.5))
    width, height = (
        np.clip([side * aspect**0.5, side / aspect**0.5], *SIDES_PX).round().astype(int).tolist()
    )
    return width, height


def stand(brush: Brush, w: float, posture: Posture, ground: Lot) -> Brush:
    """The animal's own frame: mostly all of it is in the picture, at times the edge cuts it."""
    extent = EXTENTS[posture]
    scale = min(w / extent.width, 1 / extent.height) * float(ground.uniform(0.7, 1.1))
    spare_x, spare_y = max(0.0, w - extent.width * scale), max(0.0, 1 - extent.height * scale)
    x = w / 2 + spare_x * float(ground.uniform(-0.45, 0.45))
    y = 1.06 if posture == "portrait" else 0.97 - 0.8 * spare_y * float(ground.random())
    return brush.at((x, y), scale, float(ground.normal(0, 0.09)))


def photograph(image: Image.Image, camera: Lot) -> Image.Image:
    """`image` as taken by a camera of middling quality and care: focus, light, colour cast, grain."""
    focus = float(camera.random() * 2.0 - 1.2)
    if focus > 0.1:
        image = image.filter(ImageFilter.BoxBlur(focus))
    width, height = image.size
    corners = (
        camera.normal(1.0, 0.16, (2, 2, 1)).clip(0.55, 1.4)
        * camera.uniform(0.7, 1.15)
        * camera.normal(1.0, 0.06, 3)
    )
    across, down = (
        np.linspace(0, 1, width)[:, None],
        np.linspace(0, 1, height, dtype=np.float32)[:, None],
    )
    top, bottom = (
        ((1 - across) * left + across * right).astype(np.float32).ravel() for left, right in corners
    )
    grain = np.frombuffer(camera.bytes(height * width * 3), np.int8).reshape(
        height, -1
    )  # flat rows: numpy is slow on a last axis of 3
    pixels = np.asarray(image).reshape(height, -1) * (
        top + down * (bottom - top)
    ) + grain * np.float32(camera.gamma(1.5, 0.05))
    return Image.fromarray(
        np.clip(pixels, 0, 255, out=pixels).astype(np.uint8).reshape(height, width, 3)
    )
