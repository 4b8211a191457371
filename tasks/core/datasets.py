"""From an adapter's training data to manifest rows, and back from example ids to examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gradtrail.attribution.adapters.base import TrainingData
from gradtrail.digests import short
from gradtrail.errors import DataError
from gradtrail.nouns import Example, ManifestRow


def manifest_rows(training_data: TrainingData) -> Iterator[ManifestRow]:
    """One manifest row an example, in the order of the training data.

    Raises:
        DataError: if an item is no Example, or an id or attribute is not text.
    """
    for position in range(len(training_data)):
        example = checked_example(training_data[position], position)
        yield ManifestRow(example.example_id, example.content_sha256, dict(example.attributes))


def checked_example(item: Any, position: int) -> Example:
    """The item itself, once it is sure to be an Example with a text id and text attributes."""
    if not isinstance(item, Example):
        raise DataError(
            f"Item {position} of the training data is a {type(item).__name__}, not an Example.",
            "Let training_data() return gradtrail.Example(example_id, inputs, target, attributes) items.",
        )
    if not isinstance(item.example_id, str) or not item.example_id:
        raise DataError(
            f"Item {position} of the training data has the id {item.example_id!r}.", "An example id is non-empty text."
        )
    for name, value in item.attributes.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise DataError(
                f"The attribute {name!r} of example {item.example_id!r} is {value!r}.", "Attributes are text by name."
            )
    return item


class ExampleFinder:
    """Fetches training examples by id, checking that their content is still what the manifest recorded.

    Args:
        training_data: the adapter's training data.
        manifest: position and content sha256 by example id.
    """

    def __init__(self, training_data: TrainingData, manifest: Mapping[str, tuple[int, str]]) -> None:
        self._training_data = training_data
        self._manifest = manifest

    def __call__(self, example_id: str) -> Example:
        """The example with this id.

        Raises:
            DataError: if the training data at its place has another id or content than the dataset version recorded.
        """
        position, content_sha256 = self._manifest[example_id]
        if position >= len(self._training_data):
            raise DataError(
                f"Example {example_id!r} was at position {position}, but the training data now has "
                f"{len(self._training_data)} items.",
                "Let the adapter return the data that the model was registered with, or register it again.",
            )
        example = checked_example(self._training_data[position], position)
        return refuse_drift(example, example_id, content_sha256)


def refuse_drift(example: Example, example_id: str, content_sha256: str) -> Example:
    """The example itself, once its id and content are those that were recorded.

    Raises:
        DataError: naming the example and both digests.
    """
    if example.example_id == example_id and example.content_sha256 == content_sha256:
        return example
    raise DataError(
        f"The training data drifted: where example {example_id!r} with content {short(content_sha256)} was recorded, "
        f"there is now {example.example_id!r} with content {short(example.content_sha256)}.",
        "Let the adapter return the data that the model was registered with, or register it again.",
    )
