"""The one interface users write: how gradtrail runs a model, measures a loss and shows an example.

The first dimension of outputs and losses is the example. Two methods are enough for `ClassificationAdapter` and
`RegressionAdapter`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from gradtrail.attribution.adapters.collation import (
    as_tensor,
    class_numbers,
    is_one_hot,
    map_tensors,
    move,
    required_field,
    stack,
    stack_inputs,
)
from gradtrail.attribution.adapters.previews import preview_inputs
from gradtrail.attribution.adapters.unwrapping import examples_first, output_tensor
from gradtrail.errors import DataError, ModelError
from gradtrail.nouns import Example, Preview, Target, Wording

_SAME_NUMBER = 1e-3
"""Relative difference up to which a recomputed number counts as the one that was emitted."""


_LOGITS_NDIM = 2


class TrainingData(Protocol):
    """A map-style data set of examples: a list, or any object with these two methods."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Example: ...


def iterate_examples(examples: Iterable[Example] | TrainingData) -> Iterator[Example]:
    """All examples in order; a map-style data set need not end with IndexError, so it is read by its length."""
    if isinstance(examples, Iterable):
        return iter(examples)
    return (examples[position] for position in range(len(examples)))


@dataclass(frozen=True)
class Batch:
    """What the model sees (`inputs`) and what it is compared with (`targets`); tensors, or tuples and dicts of them."""

    inputs: Any
    targets: Any

    def to(self, device: str | torch.device) -> Batch:
        """The same batch with every tensor on `device`."""
        return Batch(move(self.inputs, device), move(self.targets, device))

    def with_each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor changed: those of the inputs first, always in the same order."""
        return Batch(map_tensors(change, self.inputs), map_tensors(change, self.targets))

    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of `with_each`."""
        found: list[Tensor] = []

        def remember(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.with_each(remember)
        return found


def at_least_float32(values: Tensor) -> Tensor:
    """Real numbers in float32 where their type holds less: eight bits do not hold a sum over many tokens."""
    return values.to(torch.promote_types(values.dtype, torch.float32)) if values.is_floating_point() else values


def model_outputs(adapter: ModelAdapter, model: nn.Module, batch: Batch) -> Tensor:
    """The outputs as the adapter runs the model: the tensor in whatever it returns, the example as first dimension."""
    outputs = output_tensor(adapter.outputs(model, batch))
    return examples_first(outputs, batch.targets) if adapter.one_row_an_example else outputs


def measured_outputs(adapter: ModelAdapter, model: nn.Module, batch: Batch) -> Tensor:
    """The outputs that losses are computed from: `model_outputs`, in float32 at least."""
    return at_least_float32(model_outputs(adapter, model, batch))


class ModelAdapter(ABC):
    """How gradtrail reads one model. Subclass `ClassificationAdapter` or `RegressionAdapter` where they fit.

    `input_dtype` is what the default `collate` turns inputs into: set torch.int64 for token ids, torch.float64 for a
    double precision model, and one type for each where inputs are several, as in (torch.int64, torch.float32) for
    categories and numbers. `feature_names` name the columns of one-dimensional inputs in reports.
    `one_row_an_example` says that targets are a tensor with one row an example, so that outputs without that dimension
    get it back.

    `exclude` and `fallback_for` are patterns on names of modules, for every index of the model: what to leave out, and
    what to measure by autograd although it has a layer rule. They come before those that an index is asked for.
    """

    input_dtype: ClassVar[torch.dtype | tuple[torch.dtype, ...]] = torch.float32
    target_dtype: ClassVar[torch.dtype] = torch.float32
    feature_names: Sequence[str] = ()
    one_row_an_example: ClassVar[bool] = False
    exclude: Sequence[str] = ()
    fallback_for: Sequence[str] = ()

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The architecture, with any weights: gradtrail loads those of the checkpoint into it."""

    @abstractmethod
    def training_data(self) -> TrainingData:
        """The examples the model was trained on, each with its stable `example_id` and attributes."""

    @abstractmethod
    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The training loss of each example: (batch,), summed over tokens or pixels, not averaged over examples."""

    @abstractmethod
    def emitted(self, outputs: Tensor, batch: Batch) -> list[str]:
        """What the model says for each example, as text for people."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stack inputs and targets: tensors, arrays or nested lists of numbers of one shape.

        A dict of inputs, a tuple of tensors or arrays, and a list where `input_dtype` says several, stay apart: each
        is stacked by itself.

        Raises:
            DataError: naming the example that does not fit.
        """
        return Batch(stack_inputs(examples, self.input_dtype), stack(examples, "target", self.target_dtype))

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's outputs, (batch, …); tuples are passed as positional and dicts as keyword arguments.

        Of a model that returns several things it is `logits`, `sample` or the first tensor.

        Raises:
            ModelError: the model returns no tensor.
        """
        if isinstance(batch.inputs, Mapping):
            return output_tensor(model(**batch.inputs))
        if isinstance(batch.inputs, tuple):
            return output_tensor(model(*batch.inputs))
        return output_tensor(model(batch.inputs))

    def position_mask(self, batch: Batch) -> Tensor | None:  # noqa: ARG002 (the interface)
        """Optional: (batch, positions) of bool, True where a position is real and False where it is padding.

        Layers that run over these positions leave padding out of their gradient: the weight's part, and the bias's,
        whose input is otherwise 1 at every position. None counts every position, which gives the same wherever the loss
        does not depend on padding.
        """
        return None

    def emitted_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What is measured for an output's own, emitted target: (batch,). By default the loss of that target."""
        return self.losses(outputs, batch)

    def sample_targets(self, outputs: Tensor, batch: Batch, generator: Generator) -> Batch:  # noqa: ARG002 (the interface)
        """Optional, enables curvature `fisher`: `batch` with targets drawn from the model's own distribution.

        `generator` lives on the CPU; draw there, so that every device gets the same targets.
        """
        raise ModelError(
            f"{type(self).__name__} does not sample targets, which curvature `fisher` needs.",
            "Write sample_targets in the adapter, or choose curvature `empirical`.",
        )

    def curvature_factors(self, outputs: Tensor, batch: Batch) -> Tensor | None:  # noqa: ARG002 (the interface)
        """Optional, enables curvature `ggn`: (K, *outputs.shape), Σ_k f_k f_kᵀ = Hessian of the loss in the outputs."""
        return None

    def target_text(self, target: Any) -> str:
        """A target as the text `emitted` uses for it."""
        return str(target)

    def reproduced(self, outputs: Tensor, batch: Batch) -> Sequence[bool | None]:
        """Whether the outputs, computed again, emit the batch's targets; None where that is no question."""
        said = self.emitted(outputs, batch)
        return [text == self.target_text(target) for text, target in zip(said, _rows(batch.targets), strict=True)]

    def is_right(self, said: str, label: Any) -> bool | None:
        """Whether what the model said, as the text of `emitted`, is the true label (a target).

        None where right and wrong are no question; the report then shows both and judges neither.
        """
        return said == self.target_text(label)

    def output_to_example(self, record: Mapping[str, Any], target: Target = "emitted") -> Example:
        """An observed output as an example with a loss: fields `inputs`, and `prediction` (emitted) or `label`.

        Raises:
            DataError: naming field and record, when one is missing.
        """
        name = "prediction" if target == "emitted" else "label"
        return Example(
            example_id=str(record.get("record_id", "")),
            inputs=required_field(record, "inputs"),
            target=self.read_target(required_field(record, name), record),
        )

    def read_target(self, value: Any, record: Mapping[str, Any]) -> Any:  # noqa: ARG002 (the interface)
        """A record's prediction or label as the target of an example."""
        return value

    def preview(self, example: Example) -> Preview:
        """What a report shows of an example: a picture, a row of numbers or a line of text."""
        return preview_inputs(example.inputs, f"Example {example.example_id}", self.feature_names)

    def wording(self, target: Target) -> Wording:  # noqa: ARG002 (the interface)
        """How a report speaks of what is measured for such a target; override it with `emitted_losses`."""
        return Wording()

    @property
    def meaning_of_scores(self) -> str:
        """One sentence for the report: what a positive score means, in terms of the target."""
        return (
            "A positive score means that training on the example lowers the loss of the output's target, so the "
            "example supports the output; a negative score means that it opposes it."
        )


class ClassificationAdapter(ModelAdapter):
    """Cross entropy over (batch, classes) logits. Targets are class numbers; `class_names` are optional.

    One logit, (batch, 1) or (batch,), is that of class 1 against class 0: the loss is then binary cross entropy.
    One-hot targets are read as the numbers of their classes.
    """

    target_dtype: ClassVar[torch.dtype] = torch.int64
    class_names: Sequence[str] = ()
    one_row_an_example: ClassVar[bool] = True

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stack inputs, and targets as class numbers, unless the adapter has a loss of its own.

        Raises:
            DataError: naming the example that does not fit.
        """
        batch = super().collate(examples)
        if type(self).losses is not ClassificationAdapter.losses:
            return batch
        return Batch(batch.inputs, class_numbers(batch.targets, examples))

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of each example's class: (batch,)."""
        logits = at_least_float32(_by_class(outputs))
        self._check(logits, batch.targets)
        return functional.cross_entropy(logits, batch.targets, reduction="none")

    def emitted(self, outputs: Tensor, batch: Batch) -> list[str]:  # noqa: ARG002 (the interface)
        """The name (or number) of the most likely class."""
        return [self.target_text(number) for number in _by_class(outputs).argmax(1).tolist()]

    def target_text(self, target: Any) -> str:
        """A class number as its name, or as digits where it has none; what is no class number stays as it is."""
        number = _lone_number(target)
        if number is None:
            return str(target)
        return str(self.class_names[number]) if 0 <= number < len(self.class_names) else str(number)

    def read_target(self, value: Any, record: Mapping[str, Any]) -> int:
        """A class name or number of a record as a class number.

        Raises:
            DataError: naming the record, for anything else.
        """
        if isinstance(value, str) and value in self.class_names:
            return list(self.class_names).index(value)
        number = None if isinstance(value, list | tuple) and len(value) == 1 else _lone_number(value)
        if number is None or number < 0 or 0 < len(self.class_names) <= number:
            raise DataError(
                f"Output record {record.get('record_id', '(no record_id)')!s} names {value!r}, which is no class.",
                f"Use {'one of ' + ', '.join(self.class_names) if self.class_names else 'a class number from 0'}.",
            )
        return number

    def sample_targets(self, outputs: Tensor, batch: Batch, generator: Generator) -> Batch:
        """Classes drawn from the model's softmax."""
        probabilities = _by_class(outputs).detach().cpu().double().softmax(1)
        drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        return Batch(batch.inputs, drawn.to(outputs.device))

    def curvature_factors(self, outputs: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002 (the interface)
        """f_k = √p_k (e_k − p): Σ_k f_k f_kᵀ = diag(p) − p pᵀ, the Hessian of cross entropy in the logits.

        For one logit it is p (1 − p).
        """
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            likely = outputs.detach().sigmoid()
            return (likely * (1 - likely)).sqrt().unsqueeze(0)
        probabilities = outputs.detach().softmax(1)
        identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        return probabilities.sqrt().T.unsqueeze(2) * (identity.unsqueeze(1) - probabilities.unsqueeze(0))

    @property
    def meaning_of_scores(self) -> str:
        """One sentence for the report."""
        return (
            "A positive score means that training on the example lowers the cross entropy of the class under question "
            "(the emitted one, or the label where the label is the target): the example supports it; a negative score "
            "opposes it."
        )

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.ndim != _LOGITS_NDIM:
            raise ModelError(
                f"Outputs have shape {tuple(outputs.shape)}, where logits of shape (batch, classes) are expected.",
                "Return logits from outputs, or subclass ModelAdapter for another kind of output.",
            )
        outside = targets[(targets < 0) | (targets >= outputs.shape[1])]
        if len(outside):
            raise DataError(
                f"A target names class {outside[0].item()}, but the model has {outputs.shape[1]} classes (from 0).",
                "Correct the labels, or load the model they belong to.",
            )


class RegressionAdapter(ModelAdapter):
    """Squared error ½‖y − ŷ‖², summed over the components of a prediction."""

    one_row_an_example: ClassVar[bool] = True

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stack inputs and targets; targets have the type of inputs, where that is one of real numbers."""
        dtype = self.input_dtype
        if isinstance(dtype, tuple) or not dtype.is_floating_point:
            dtype = self.target_dtype
        return Batch(stack_inputs(examples, self.input_dtype), stack(examples, "target", dtype))

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """½‖y − ŷ‖² of each example: (batch,)."""
        return 0.5 * (_flat(at_least_float32(outputs)) - self._targets(outputs, batch)).square().sum(1)

    def emitted_losses(self, outputs: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002 (the interface)
        """Minus the prediction (the sum of its components): its loss against itself would have no gradient."""
        return -_flat(at_least_float32(outputs)).sum(1)

    def emitted(self, outputs: Tensor, batch: Batch) -> list[str]:  # noqa: ARG002 (the interface)
        """The predicted numbers, to six digits."""
        return [self.target_text(row) for row in _flat(outputs.detach())]

    def target_text(self, target: Any) -> str:
        """Numbers to six digits, comma-separated."""
        return ", ".join(f"{number:.6g}" for number in as_tensor(target, "A target").reshape(-1).tolist())

    def reproduced(self, outputs: Tensor, batch: Batch) -> list[bool]:
        """Whether each prediction agrees with its target to a relative 1e-3 (of its largest component)."""
        targets = self._targets(outputs, batch)
        gap = (_flat(outputs.detach()) - targets).abs().amax(1)
        agreed: list[bool] = (gap <= _SAME_NUMBER * targets.abs().amax(1).clamp_min(_SAME_NUMBER)).tolist()
        return agreed

    def is_right(self, said: str, label: Any) -> bool | None:  # noqa: ARG002 (the interface)
        """None: a number is nearer to the label or further from it. Override it where you know how near is right."""
        return None

    def wording(self, target: Target) -> Wording:
        """An emitted target is the prediction itself, unless a subclass measures something else."""
        if target == "label" or type(self).emitted_losses is not RegressionAdapter.emitted_losses:
            return Wording()
        return Wording(
            "Minus the prediction", "training on them raises this prediction", "training on them lowers this prediction"
        )

    def sample_targets(self, outputs: Tensor, batch: Batch, generator: Generator) -> Batch:
        """The prediction plus unit Gaussian noise, the distribution whose log-likelihood is −½‖y − ŷ‖²."""
        noise = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
        return Batch(batch.inputs, outputs.detach() + noise.to(device=outputs.device, dtype=outputs.dtype))

    def curvature_factors(self, outputs: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002 (the interface)
        """The unit vectors: the Hessian of ½‖y − ŷ‖² in ŷ is the identity."""
        size = outputs[0].numel()
        identity = torch.eye(size, dtype=outputs.dtype, device=outputs.device)
        return identity.unsqueeze(1).expand(size, len(outputs), size).reshape(size, *outputs.shape)

    @property
    def meaning_of_scores(self) -> str:
        """One sentence for the report."""
        return (
            "For an emitted prediction a positive score means that training on the example raises the predicted value; "
            "for a label it means that training on the example lowers the squared error ½‖y − ŷ‖² against the label."
        )

    def _targets(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = _flat(batch.targets)
        if targets.shape != _flat(outputs).shape:
            raise ModelError(
                f"Predictions have shape {tuple(outputs.shape)}, but targets {tuple(batch.targets.shape)}.",
                "Give each example as many target numbers as the model predicts.",
            )
        return targets


def _by_class(outputs: Tensor) -> Tensor:
    """Logits (batch, classes); one logit stands for two classes, of which the first has the logit 0."""
    if outputs.ndim == 1:
        outputs = outputs.unsqueeze(1)
    if outputs.ndim == _LOGITS_NDIM and outputs.shape[1] == 1:
        return torch.cat([torch.zeros_like(outputs), outputs], dim=1)
    return outputs


def _lone_number(target: Any) -> int | None:
    """A class number, or that of a one-hot row; None for anything else."""
    try:
        values = as_tensor(float(target) if isinstance(target, str) else target, "A target").reshape(-1).double()
    except (DataError, ValueError):
        return None
    if len(values) > 1:
        return int(values.argmax()) if is_one_hot(values) else None
    value = float(values.item()) if len(values) else float("nan")
    return int(value) if value.is_integer() else None


def _flat(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


def _rows(targets: Any) -> Iterator[Any]:
    return iter(targets.tolist() if isinstance(targets, Tensor) else targets)
