"""What a report may show of an example: previews in full, redacted or not at all, and pictures as data URIs."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from gradtrail.errors import DataError
from gradtrail.nouns import Preview, PreviewMode

MASK = "████████"
_KEPT_CHARACTERS = 3
_LARGEST_SIDE = 384
_REDACTED_BLOCKS = 4
_REDACTED_BLOCK_PIXELS = 16
_REDACTED_BITS = 0xE0
_PIXELATED_UP_TO = 96
_LONGEST_PLAIN_ANSWER = 40
_QUOTED = re.compile(rf"""(?<!\w)(?P<mark>['"])(?P<text>.{{{_LONGEST_PLAIN_ANSWER},}})(?P=mark)""", re.DOTALL)
"""From the first quotation mark of a kind to the last, so that those within what is quoted do not end it."""
# An example often appears under many outputs; its picture is decoded once.
_REMEMBERED = 512


@dataclass(frozen=True)
class Picture:
    """A PNG ready for a style sheet: data URI, size in pixels, and whether its pixels should stay crisp squares.

    `name` is the class of the elements that show it.
    """

    name: str
    uri: str
    width: int
    height: int
    pixelated: bool


class Gallery:
    """The distinct pictures of one page: each is there once, however many examples and outputs show it."""

    def __init__(self) -> None:
        self._pictures: dict[bytes, Picture] = {}

    def picture(self, png: bytes) -> Picture:
        """The picture of these bytes, by its name on this page.

        Raises:
            DataError: the bytes are not a readable PNG.
        """
        if png not in self._pictures:
            width, height = _open(png).size
            uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
            crisp = max(width, height) <= _PIXELATED_UP_TO
            self._pictures[png] = Picture(f"p{len(self._pictures) + 1}", uri, width, height, crisp)
        return self._pictures[png]

    def pictures(self) -> tuple[Picture, ...]:
        """All of them, in the order they were first shown."""
        return tuple(self._pictures.values())


def apply_mode(preview: Preview | None, mode: PreviewMode) -> Preview | None:
    """What may be shown of `preview` under `mode`; applying it twice changes nothing more.

    full: as it is; only a picture with a side above 384 pixels is made smaller. redacted: a picture becomes at most
    4 × 4 flat blocks of 8 levels per colour, a text keeps at most its first 3 characters, a row keeps its field names.
    none: None.

    Raises:
        DataError: the picture is not a readable PNG.
    """
    if preview is None or mode == "none":
        return None
    if preview.kind == "image":
        return Preview("image", png=_shown_png(preview.png, mode))
    if mode == "full":
        return preview
    if preview.kind == "text":
        return Preview("text", text=redact_text(preview.text))
    return Preview("row", row=dict.fromkeys(preview.row, MASK))


def redact_text(text: str) -> str:
    """At most the first 3 characters, and never more than a quarter, then a mask of fixed length."""
    if text.endswith(MASK) and len(text) <= _KEPT_CHARACTERS + len(MASK):
        return text
    return text[: min(_KEPT_CHARACTERS, len(text) // 4)] + MASK


def shown_answer(answer: str, mode: PreviewMode) -> str:
    """A prediction or true label as the report may print it: outside `full`, a text is masked, a class name is not."""
    if mode == "full" or len(answer) <= _LONGEST_PLAIN_ANSWER:
        return answer
    return redact_text(answer)


def shown_reason(reason: str, mode: PreviewMode) -> str:
    """Why a record was refused, as the report may print it: outside `full`, what it quotes of the record is masked."""
    if mode == "full":
        return reason
    return _QUOTED.sub(lambda quoted: f"{quoted['mark']}{redact_text(quoted['text'])}{quoted['mark']}", reason)


def _open(png: bytes) -> Image.Image:
    try:
        image = Image.open(BytesIO(png), formats=("PNG",))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"A preview of {len(png)} bytes is not a readable PNG picture ({error}).",
            "Return PNG bytes from the adapter's preview().",
        ) from error
    return image


@lru_cache(maxsize=_REMEMBERED)
def _shown_png(png: bytes, mode: PreviewMode) -> bytes:
    return _redacted_png(png) if mode == "redacted" else _full_png(png)


def _full_png(png: bytes) -> bytes:
    image = _open(png)
    if max(image.size) <= _LARGEST_SIDE:
        return png
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return _encoded(image)


def _redacted_png(png: bytes) -> bytes:
    image = _open(png).convert("RGBA")
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    blocks = (_block_count(image.width), _block_count(image.height))
    coarse = opaque.resize(blocks, Image.Resampling.BOX).point(lambda level: int(level) & _REDACTED_BITS)
    side = _REDACTED_BLOCKS * _REDACTED_BLOCK_PIXELS
    return _encoded(coarse.resize((side, side), Image.Resampling.NEAREST))


def _block_count(pixels: int) -> int:
    """A power of two, so that the blocks of a redacted picture survive being redacted again."""
    if pixels >= 4 * _REDACTED_BLOCKS:
        return _REDACTED_BLOCKS
    return 2 if pixels >= 2 * _REDACTED_BLOCKS else 1


def _encoded(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
