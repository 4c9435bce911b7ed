"""Drawing boxes on pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from vigil.perception.v1.perception_pb2 import Output

__all__ = ["draw"]

_COLOURS = {"text": (0, 114, 178), "face": (213, 94, 0)}  # Okabe-Ito: told apart by colour-blind people
_OTHER = (0, 158, 115)


def draw(image: Path, output: Output, target: Path) -> None:
    """Draw an output's boxes, landmarks, confidences and origin on a copy of the picture."""
    picture = Image.open(image).convert("RGB")
    pen = ImageDraw.Draw(picture)
    width = max(2, picture.width // 300)
    size = max(11, picture.width // 60)
    font = ImageFont.load_default(size=size)
    for box in output.boxes:
        colour = _COLOURS.get(box.label, _OTHER)
        if box.quadrilateral:
            pen.polygon([(p.x, p.y) for p in box.quadrilateral], outline=colour, width=width)
        else:
            pen.rectangle((box.x_min, box.y_min, box.x_max, box.y_max), outline=colour, width=width)
        for p in box.landmarks:
            pen.ellipse((p.x - width, p.y - width, p.x + width, p.y + width), fill=colour)
        if len(output.boxes) <= 40:
            text = f"{box.label} {box.confidence:.2f}"
            place = (box.x_min, max(0, box.y_min - size - 2))
            pen.rectangle(pen.textbbox(place, text, font=font), fill=colour)
            pen.text(place, text, fill=(255, 255, 255), font=font)
    caption = f"{output.model} v{output.model_version} {output.model_digest[:12]}  {len(output.boxes)} boxes"
    place = (4, picture.height - size - 6)
    pen.rectangle(pen.textbbox(place, caption, font=font), fill=(0, 0, 0))
    pen.text(place, caption, fill=(255, 255, 255), font=font)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target)
