from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from gradtrail.errors import DataError
from gradtrail.nouns import Preview
from gradtrail.reports.previews import MASK, Gallery, apply_mode, redact_text, shown_answer, shown_reason


def png(width: int, height: int, seed: int = 0) -> bytes:
    stream = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def opened(preview: Preview | None) -> np.ndarray:
    assert preview is not None
    return np.asarray(Image.open(BytesIO(preview.png)).convert("RGB"))


def test_full_leaves_small_pictures_texts_and_rows_as_they_are() -> None:
    for preview in (
        Preview("image", png=png(8, 8)),
        Preview("text", text="the whole text"),
        Preview("row", row={"age": "41"}),
    ):
        assert apply_mode(preview, "full") == preview


def test_full_makes_a_huge_picture_smaller_and_keeps_its_proportions() -> None:
    assert opened(apply_mode(Preview("image", png=png(800, 400)), "full")).shape == (192, 384, 3)


@pytest.mark.parametrize("preview", [Preview("image", png=png(8, 8)), Preview("text", text="a"), None])
def test_none_shows_nothing(preview: Preview | None) -> None:
    assert apply_mode(preview, "none") is None


@pytest.mark.parametrize(("side", "blocks"), [(8, 2), (12, 2), (28, 4), (500, 4), (3, 1)])
def test_a_redacted_picture_holds_a_few_flat_blocks_only(side: int, blocks: int) -> None:
    redacted = apply_mode(Preview("image", png=png(side, side)), "redacted")
    shown = opened(redacted)
    assert shown.shape == (64, 64, 3)
    size = 64 // blocks
    for row in range(blocks):
        for column in range(blocks):
            block = shown[row * size : (row + 1) * size, column * size : (column + 1) * size].reshape(-1, 3)
            assert len(np.unique(block, axis=0)) == 1
    assert set(np.unique(shown)) <= set(range(0, 256, 32))


def test_two_different_pictures_become_the_same_when_redacted() -> None:
    flat, detailed = np.full((28, 28), 120, np.uint8), np.full((28, 28), 120, np.uint8)
    detailed[::2], detailed[1::2] = 90, 140
    shown = []
    for pixels in (flat, detailed):
        stream = BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG")
        shown.append(apply_mode(Preview("image", png=stream.getvalue()), "redacted"))
    assert shown[0] == shown[1]


def test_redaction_drops_what_travels_inside_the_file() -> None:
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("patient", "Jane Doe")
    stream = BytesIO()
    Image.new("L", (32, 32), 200).save(stream, format="PNG", pnginfo=notes)
    assert b"Jane Doe" in stream.getvalue()
    redacted = apply_mode(Preview("image", png=stream.getvalue()), "redacted")
    assert redacted is not None
    assert b"Jane Doe" not in redacted.png


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a long sentence about someone", f"a l{MASK}"),
        ("secret", f"s{MASK}"),
        ("yes", MASK),
        ("", MASK),
        (f"password1234{MASK}", f"pas{MASK}"),
    ],
)
def test_redacted_text_keeps_a_few_characters_and_hides_the_length(text: str, shown: str) -> None:
    assert redact_text(text) == shown


def test_a_redacted_row_keeps_field_names_and_no_value() -> None:
    redacted = apply_mode(Preview("row", row={"age": "41", "town": "Lund"}), "redacted")
    assert redacted == Preview("row", row={"age": MASK, "town": MASK})


@pytest.mark.parametrize(
    "preview",
    [
        *(Preview("image", png=png(side, side + 5)) for side in (2, 8, 13, 28, 300)),
        Preview("text", text="a long sentence about someone"),
        Preview("row", row={"age": "41"}),
    ],
)
def test_redacting_twice_changes_nothing_more(preview: Preview) -> None:
    once = apply_mode(preview, "redacted")
    assert apply_mode(once, "redacted") == once


@pytest.mark.parametrize("content", [b"", b"not a png", png(8, 8)[:40], b"<svg onload=alert(1)>"])
@pytest.mark.parametrize("mode", ["full", "redacted"])
def test_a_picture_that_is_no_png_is_refused(content: bytes, mode: str) -> None:
    with pytest.raises(DataError, match="not a readable PNG") as caught:
        apply_mode(Preview("image", png=content), mode)
    assert "preview()" in caught.value.remedy


def test_small_pictures_are_shown_with_crisp_pixels_and_large_ones_smoothly() -> None:
    gallery = Gallery()
    assert gallery.picture(png(8, 8)).pixelated
    assert not gallery.picture(png(200, 8)).pixelated
    assert gallery.picture(png(8, 6)).uri.startswith("data:image/png;base64,")


def test_a_gallery_holds_each_picture_once() -> None:
    gallery = Gallery()
    shown = [gallery.picture(png(*size)) for size in ((8, 8), (8, 6), (8, 8))]
    assert shown[0] == shown[2]
    assert gallery.pictures() == (shown[0], shown[1])
    assert [each.name for each in gallery.pictures()] == ["p1", "p2"]
    assert (shown[1].width, shown[1].height) == (8, 6)


def test_a_class_name_stays_readable_and_a_generated_text_does_not() -> None:
    story = "Once upon a time there was a person with a name and an address."
    assert shown_answer("7", "redacted") == "7"
    assert shown_answer(story, "full") == story
    assert shown_answer(story, "none") == shown_answer(story, "redacted") == f"Onc{MASK}"


def test_a_reason_keeps_its_words_and_loses_what_it_quotes_at_length() -> None:
    told = "She said: “It's Jane Doe's”, and 'no more', of the archive in Lund."
    reason = f"Output record scan-7 names {told!r}, which is no class."
    assert shown_reason(reason, "full") == reason
    assert shown_reason(reason, "none") == f'Output record scan-7 names "She{MASK}", which is no class.'
    plain = "The model's output is not finite for the record's 64 pixels; it isn't the 'inputs' field's fault."
    assert shown_reason(plain, "redacted") == plain
