from __future__ import annotations

import io
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gradtrail.attribution.adapters.base import Batch, ClassificationAdapter, ModelAdapter
from gradtrail.errors import DataError, ModelError
from gradtrail.nouns import Example, Wording


class Named(ClassificationAdapter):
    class_names = ("cat", "dog")

    def build_model(self) -> nn.Module:
        return nn.Linear(4, 2)

    def training_data(self) -> list[Example]:
        return []


NESTED = np.array([np.array([1.0, 2.0]), np.array([3.0, 4.0])], dtype=object)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        np.array([[1, 2], [3, 4]], dtype=np.uint8),
        [[1, 2], [3, 4]],
        ((1.0, 2.0), (3.0, 4.0)),
        NESTED,
        [np.array([1.0, 2.0]), torch.tensor([3.0, 4.0])],
    ],
    ids=["tensor", "array", "lists", "tuples", "arrays of arrays", "mixed"],
)
def test_collate_takes_what_tensors_arrays_parquet_and_json_hold(inputs):
    batch = Named().collate([Example("a", inputs, 1), Example("b", inputs, np.int64(0))])
    assert batch.inputs.dtype == torch.float32
    assert batch.inputs[1].tolist() == [[1, 2], [3, 4]]
    assert batch.targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [([1, 2, 3], "shape"), ([[1], [2, 3]], "cannot become"), ("text", "cannot become"), ({"a": 1}, "cannot become")],
)
def test_an_example_that_does_not_fit_the_batch_is_named(inputs, message):
    with pytest.raises(DataError, match=f"example odd {message}|example odd has {message}"):
        Named().collate([Example("fine", [1, 2], 0), Example("odd", inputs, 0)])


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (1.5, torch.int64, "1.5"),
        ([0.0, 3.75], torch.int64, "3.75"),
        (np.float32(-0.25), torch.int64, "-0.25"),
        (torch.tensor([2.0, torch.nan]), torch.int64, "nan"),
        (torch.tensor(float("inf")), torch.int64, "inf"),
        (3e18 * 4, torch.int64, "1.2e\\+19"),
        (torch.tensor(0.4, dtype=torch.bfloat16), torch.int64, "0.4"),
        (0.5, torch.bool, "0.5"),
        (256, torch.uint8, "256"),
        (-1, torch.uint8, "-1"),
        (np.uint64(2**63 + 8), torch.int64, str(2**63 + 8)),
        (2**24 + 1, torch.float32, str(2**24 + 1)),
        (1e200, torch.float32, "1e\\+200"),
        (70_000.0, torch.float16, "70000"),
        (torch.tensor(1 + 2j), torch.float32, "1\\+2j"),
    ],
)
@pytest.mark.parametrize("part", ["inputs", "target"])
def test_a_value_that_a_cast_would_change_is_refused_naming_the_example(value, dtype, said, part):
    class Typed(Named):
        input_dtype = target_dtype = dtype

    fine = (
        torch.zeros_like(torch.as_tensor(value)) if isinstance(value, torch.Tensor) else np.zeros_like(value).tolist()
    )
    examples = [Example("fine", fine, fine), Example("odd", *((value, fine) if part == "inputs" else (fine, value)))]
    with pytest.raises(DataError, match=f"The {part} of example odd holds .*{said}.*cannot hold"):
        Typed().collate([*examples, examples[0]])


def test_a_cast_that_changes_no_value_or_only_rounds_a_real_number_is_taken():
    exact = [2.0, np.float32(1), torch.tensor(3.0, dtype=torch.float64), True, np.uint64(7), np.uint8(255)]
    batch = Named().collate(
        [Example(str(row), [0.1, 2**24, float("nan"), 1], number) for row, number in enumerate(exact)]
    )
    assert batch.targets.tolist() == [2, 1, 3, 1, 7, 255]
    assert torch.equal(batch.inputs[5].nan_to_num(), torch.tensor([0.1, 2**24, 0, 1]))


def test_a_target_between_two_classes_is_not_told_as_one_of_them():
    assert [Named().target_text(value) for value in (0.9, float("nan"), 1.0)] == ["0.9", "nan", "dog"]


def test_batches_move_through_tuples_dicts_and_named_tuples():
    pair = namedtuple("pair", ["left", "right"])
    tensor = torch.ones(2)
    moved = Batch({"x": (tensor, [tensor, 3])}, pair(tensor, "kept")).to("meta")
    assert moved.inputs["x"][1][0].device.type == "meta"
    assert moved.inputs["x"][1][1] == 3
    assert moved.targets.left.device.type == "meta"
    assert moved.targets.right == "kept"


def test_tuples_and_dicts_of_inputs_reach_the_model_as_arguments():
    class Adding(nn.Module):
        def forward(self, left, right):
            return left + 2 * right

    left, right = torch.ones(1, 2), torch.full((1, 2), 3.0)
    for inputs in ((left, right), {"left": left, "right": right}):
        assert Named().outputs(Adding(), Batch(inputs, None)).tolist() == [[7, 7]]


def test_an_output_record_becomes_an_example_whose_target_was_emitted_or_labelled():
    record = {"record_id": "r1", "inputs": [0, 0, 0, 0], "prediction": "dog", "label": 0.0}
    emitted = Named().output_to_example(record)
    assert (emitted.example_id, emitted.target) == ("r1", 1)
    assert Named().output_to_example(record, target="label").target == 0


@pytest.mark.parametrize("field", ["inputs", "prediction", "label"])
@pytest.mark.parametrize("missing", ["absent", None, float("nan")])
def test_a_missing_field_of_a_record_is_named_with_the_record(field, missing):
    record = {"record_id": "r1", "inputs": [0], "prediction": 1, "label": 1}
    if missing == "absent":
        del record[field]
    else:
        record[field] = missing
    with pytest.raises(DataError, match=f"record r1 has no field '{field}'"):
        Named().output_to_example(record, target="label" if field == "label" else "emitted")


@pytest.mark.parametrize("prediction", ["cow", -1, 2, 0.5, [1], "x1"])
def test_a_class_that_does_not_exist_is_refused(prediction):
    with pytest.raises(DataError, match="which is no class") as caught:
        Named().output_to_example({"record_id": "r1", "inputs": [0], "prediction": prediction})
    assert "cat, dog" in caught.value.remedy


def test_what_was_emitted_is_told_by_name_and_checked_for_reproduction():
    adapter = Named()
    outputs = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert adapter.emitted(outputs, Batch(None, None)) == ["dog", "cat"]
    assert adapter.reproduced(outputs, Batch(None, torch.tensor([1, 1]))) == [True, False]


def test_labels_and_outputs_that_do_not_fit_the_model_are_refused():
    batch = Named().collate([Example("a", [1, 2, 3, 4], 7)])
    with pytest.raises(DataError, match="class 7, but the model has 2 classes"):
        Named().losses(torch.zeros(1, 2), batch)
    with pytest.raises(ModelError, match=r"logits of shape \(batch, classes\)"):
        Named().losses(torch.zeros(1, 2, 3), batch)


def test_regression_measures_half_the_squared_error_and_tolerates_rounding(make_regressor):
    adapter = make_regressor(lambda: nn.Linear(2, 2), [])
    batch = adapter.collate([Example("a", [0.0, 0.0], [1.0, 2.0]), Example("b", [0.0, 0.0], [0.0, 0.0])])
    outputs = torch.tensor([[1.0, 4.0], [1e-7, 0.0]], dtype=torch.float64)
    assert adapter.losses(outputs, batch).tolist() == pytest.approx([2.0, 0.0], abs=1e-12)
    assert adapter.emitted_losses(outputs, batch).tolist() == pytest.approx([-5.0, 0.0], abs=1e-6)
    assert adapter.reproduced(outputs, batch) == [False, True]
    assert adapter.emitted(outputs, batch) == ["1, 4", "1e-07, 0"]
    with pytest.raises(ModelError, match="targets"):
        adapter.losses(outputs[:, :1], batch)
    assert "raises the predicted value" in adapter.meaning_of_scores


def test_a_scalar_regression_broadcasts_nothing(make_regressor):
    adapter = make_regressor(lambda: nn.Linear(2, 1), [])
    batch = adapter.collate([Example("a", [0.0], 1.0), Example("b", [0.0], 3.0)])
    for outputs in (torch.zeros(2), torch.zeros(2, 1)):
        assert adapter.losses(outputs.double(), batch).tolist() == [0.5, 4.5]


@pytest.mark.parametrize("shape", [(8, 6), (1, 8, 6), (3, 8, 6)])
def test_pictures_are_previewed_as_png(shape):
    preview = Named().preview(Example("a", torch.rand(shape), 0))
    assert preview.kind == "image"
    assert Image.open(io.BytesIO(preview.png)).size == (6, 8)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (torch.tensor([[0.0, 1.0]]), [0, 255]),
        (torch.tensor([[0.0, 16.0]]), [0, 255]),
        (torch.tensor([[-1.0, 1.0]]), [0, 255]),
        (torch.tensor([[7.0, 7.0]]), [128, 128]),
        (torch.tensor([[3, 9]], dtype=torch.uint8), [3, 9]),
    ],
)
def test_pixels_use_the_whole_range_unless_they_are_bytes(pixels, expected):
    preview = Named().preview(Example("a", pixels, 0))
    assert np.asarray(Image.open(io.BytesIO(preview.png))).flatten().tolist() == expected


def test_short_rows_text_and_everything_else_have_previews():
    adapter = Named()
    adapter.feature_names = ("width",)
    assert adapter.preview(Example("a", [1.5, 2], 0)).row == {"width": "1.5", "1": "2"}
    assert adapter.preview(Example("a", "<script>", 0)).text == "<script>"
    assert "shape (100,)" in adapter.preview(Example("a", torch.zeros(100), 0)).text
    assert "shape (2, 2, 2, 2)" in adapter.preview(Example("a", torch.zeros(2, 2, 2, 2), 0)).text
    assert "not finite" in adapter.preview(Example("a", torch.full((4, 4), torch.nan), 0)).text
    assert "dict" in adapter.preview(Example("a", {"a": 1}, 0)).text


def test_numbers_are_not_judged_by_their_text_and_names_are(make_regressor):
    number = make_regressor(lambda: nn.Linear(2, 1), [])
    assert number.is_right("2.30001", 2.3) is None
    named = Named()
    assert [named.is_right(said, 1) for said in (named.target_text(1), named.target_text(0))] == [True, False]


def test_an_emitted_number_has_no_loss_that_training_lowers(make_regressor):
    number = make_regressor(lambda: nn.Linear(2, 1), [])
    assert number.wording("emitted").measured == "Minus the prediction"
    assert "raises this prediction" in number.wording("emitted").proponents
    assert "lowers this prediction" in number.wording("emitted").opponents
    assert "lowers the loss" in number.wording("label").proponents

    class Squared(make_regressor):
        def emitted_losses(self, outputs, _batch):
            return outputs.square().sum(1)

    assert Squared(lambda: nn.Linear(2, 1), []).wording("emitted") == Named().wording("emitted") == Wording()


def test_the_interface_says_what_scores_mean():
    assert "cross entropy" in Named().meaning_of_scores
    assert "lowers the loss" in ModelAdapter.meaning_of_scores.fget(Named())
