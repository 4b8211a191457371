"""Causal language models: an example is a prompt and its continuation, its loss the sum over the continuation's tokens.

An example's `inputs` are the tokens of the prompt and its `target` those of the continuation. Where `target` is None,
`inputs` are a document of which every token but the first counts. Tokens are whole numbers, or text where the adapter
can `encode`. Batches are padded on the right, where a causal model cannot look from the left.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from gradtrail.attribution.adapters.base import Batch, ModelAdapter, at_least_float32
from gradtrail.attribution.adapters.collation import as_tensor, required_field
from gradtrail.attribution.adapters.unwrapping import output_tensor
from gradtrail.errors import DataError, ModelError
from gradtrail.nouns import Example, Preview, Target

UNCOUNTED = -100
"""The target of a position whose prediction is part of no loss: prompt and padding."""

_IMPLAUSIBLE = 1e-6
_LARGEST_FACTORS = 1 << 26
_LOGITS_NDIM = 3


class CausalLMAdapter(ModelAdapter):
    """Cross entropy of next tokens. Write `build_model` and `training_data`; all else may stay as it is.

    The model may be one of Hugging Face's (whatever returns an object with `logits`) or any module from token ids
    (batch, positions) to logits (batch, positions, vocabulary). It gets `position_ids` (batch, positions) where its
    forward takes them and it is none of Hugging Face's, which count for themselves.

    Attributes:
        padding_token: fills up shorter sequences; any token will do.
        context_length: the longest sequence the model can read; None does not check.
        sampled: whether production draws tokens at random. An output then counts as reproduced where no token of it is
            less likely than one in a million; otherwise each must be the most likely one.
    """

    input_dtype: ClassVar[torch.dtype] = torch.int64
    target_dtype: ClassVar[torch.dtype] = torch.int64
    padding_token: ClassVar[int] = 0
    context_length: ClassVar[int | None] = None
    sampled: ClassVar[bool] = False

    def encode(self, text: str) -> Sequence[int]:
        """Optional: the tokens of a text, for examples and outputs that hold text."""
        raise DataError(
            f"{type(self).__name__} cannot read the text {text[:40]!r}: it has no tokeniser.",
            "Write encode(text) in the adapter, or give token ids.",
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Optional: the text of tokens, for people; by default the numbers themselves."""
        return " ".join(map(str, tokens))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Inputs `input_ids`, `position_ids` and `attention_mask`, targets the next tokens: each (batch, positions).

        A target is `UNCOUNTED` where the next token belongs to the prompt or to padding.

        Raises:
            DataError: naming the example that has no token to predict, is too long, or is not made of tokens.
        """
        if not examples:
            raise DataError("A batch without examples.", "Pass at least one example.")
        pairs = [self._sequence(example) for example in examples]
        longest = max(len(tokens) for tokens, _ in pairs) - 1
        inputs = torch.full((len(pairs), longest), self.padding_token, dtype=torch.int64)
        targets = torch.full_like(inputs, UNCOUNTED)
        real = torch.zeros_like(inputs)
        for row, (tokens, counted_from) in enumerate(pairs):
            length = len(tokens) - 1
            inputs[row, :length] = tokens[:-1]
            real[row, :length] = 1
            targets[row, counted_from - 1 : length] = tokens[counted_from:]
        positions = torch.arange(longest).expand_as(inputs).contiguous()
        return Batch({"input_ids": inputs, "position_ids": positions, "attention_mask": real}, targets)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of the next token at every position: (batch, positions, vocabulary).

        No attention mask is passed: padding is on the right, where a causal model never looks.

        Raises:
            DataError: for a token, or a sequence, that the model's embeddings do not hold.
            ModelError: for outputs of another shape.
        """
        accepted = inspect.signature(model.forward).parameters
        options: dict[str, Any] = {}
        if "position_ids" in accepted and not _counts_positions(model):
            options["position_ids"] = batch.inputs["position_ids"]
        if "use_cache" in accepted:
            options["use_cache"] = False
        try:
            found = model(batch.inputs["input_ids"], **options)
        except IndexError as cause:
            ids = batch.inputs["input_ids"]
            raise DataError(
                f"The model cannot read tokens up to {ids.max().item()} in a sequence of {ids.shape[1]}: {cause}.",
                "Use the tokeniser and the context length the model was built for.",
            ) from cause
        logits = output_tensor(found)
        if logits.shape[:-1] != batch.inputs["input_ids"].shape:
            raise ModelError(
                f"The model returns {tuple(logits.shape)}, where logits of shape (batch, positions, vocabulary) are "
                "expected.",
                "Return the logits of every position, or override outputs in the adapter.",
            )
        return logits

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """−log probability of each example's counted tokens, summed: (batch,).

        Raises:
            ModelError: for logits of another shape.
            DataError: for a target beyond the vocabulary.
        """
        self._check(outputs, batch.targets)
        each = functional.cross_entropy(
            at_least_float32(outputs).flatten(0, 1), batch.targets.flatten(), ignore_index=UNCOUNTED, reduction="none"
        )
        return each.reshape(batch.targets.shape).sum(1)

    def position_mask(self, batch: Batch) -> Tensor:
        """True at real positions: (batch, positions)."""
        real: Tensor = batch.inputs["attention_mask"]
        return real.bool()

    def emitted(self, outputs: Tensor, batch: Batch) -> list[str]:
        """The most likely token at every counted position, each given what really came before, as text."""
        said = outputs.argmax(2)
        return [
            self.decode(row[counted].tolist()) for row, counted in zip(said, batch.targets != UNCOUNTED, strict=True)
        ]

    def reproduced(self, outputs: Tensor, batch: Batch) -> list[bool]:
        """Whether the model, run again, says the continuation: greedily, or plausibly where it is `sampled`."""
        counted = batch.targets != UNCOUNTED
        if self.sampled:
            chosen = batch.targets.masked_fill(~counted, 0).unsqueeze(2)
            agreed = outputs.float().softmax(2).gather(2, chosen).squeeze(2) >= _IMPLAUSIBLE
        else:
            agreed = outputs.argmax(2) == batch.targets
        same: list[bool] = (agreed | ~counted).all(1).tolist()
        return same

    def sample_targets(self, outputs: Tensor, batch: Batch, generator: Generator) -> Batch:
        """Each counted token drawn from the model's softmax, given the tokens that really came before."""
        counted = (batch.targets != UNCOUNTED).cpu()
        probabilities = outputs.detach().cpu()[counted].double().softmax(1)
        drawn = torch.full(counted.shape, UNCOUNTED)
        drawn[counted] = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        return Batch(batch.inputs, drawn.to(outputs.device))

    def curvature_factors(self, outputs: Tensor, batch: Batch) -> Tensor:
        """√p_k (e_k − p) at each counted position t, for each (t, k): (positions · vocabulary, *outputs.shape).

        Raises:
            ModelError: where they are too many to hold; a sampled Fisher is the same in the mean.
        """
        size, positions, vocabulary = outputs.shape
        if size * (positions * vocabulary) ** 2 > _LARGEST_FACTORS:
            raise ModelError(
                f"The exact curvature of {positions} positions and {vocabulary} tokens takes "
                f"{positions * vocabulary:,} backward passes a batch.",
                "Choose curvature fisher, which draws tokens from the model and is the same in the mean.",
            )
        probabilities = outputs.detach().softmax(2)
        identity = torch.eye(vocabulary, dtype=outputs.dtype, device=outputs.device)
        factors = probabilities.sqrt().unsqueeze(3) * (identity - probabilities.unsqueeze(2))
        factors = factors * (batch.targets != UNCOUNTED)[:, :, None, None]
        found = outputs.new_zeros(positions, vocabulary, size, positions, vocabulary)
        for position in range(positions):
            found[position, :, :, position] = factors[:, position].transpose(0, 1)
        return found.flatten(0, 1)

    def output_to_example(self, record: Mapping[str, Any], target: Target = "emitted") -> Example:
        """An observed output: `prompt` (or `inputs`), and `completion` (or `prediction`), or `label`, its reference.

        Each is text or token ids. The prompt is not part of the loss.

        Raises:
            DataError: naming field and record, when one is missing.
        """
        said = "completion" if record.get("completion") is not None else "prediction"
        return Example(
            example_id=str(record.get("record_id", "")),
            inputs=required_field(record, "prompt" if record.get("prompt") is not None else "inputs"),
            target=required_field(record, said if target == "emitted" else "label"),
        )

    def target_text(self, target: Any) -> str:
        """A continuation as text."""
        return target if isinstance(target, str) else self.decode(self._tokens(target, "A target").tolist())

    def preview(self, example: Example) -> Preview:
        """Prompt and continuation, or the document, as text."""
        parts = [example.inputs] if example.target is None else [example.inputs, example.target]
        return Preview(kind="text", text=" ⟶ ".join(text for text in map(self.target_text, parts) if text))

    @property
    def meaning_of_scores(self) -> str:
        """One sentence for the report."""
        return (
            "A positive score means that training on the example raises the probability of the continuation under "
            "question, given its prompt (the sum of the log probabilities of its tokens): the example supports it; a "
            "negative score opposes it."
        )

    def _sequence(self, example: Example) -> tuple[Tensor, int]:
        """All tokens, and the first place that counts: at least 1, because nothing comes before the first token."""
        tokens = self._tokens(example.inputs, f"The inputs of example {example.example_id}")
        counted_from = 1
        if example.target is not None:
            counted_from = max(1, len(tokens))
            tokens = torch.cat([tokens, self._tokens(example.target, f"The target of example {example.example_id}")])
        if len(tokens) <= counted_from:
            raise DataError(
                f"Example {example.example_id} has {len(tokens)} tokens and none to predict.",
                "Give a continuation, and a prompt or a first token before it.",
            )
        if self.context_length is not None and len(tokens) - 1 > self.context_length:
            raise DataError(
                f"Example {example.example_id} has {len(tokens)} tokens, but the model reads {self.context_length}.",
                "Cut it up as it was for training, into examples with ids of their own.",
            )
        return tokens, counted_from

    def _tokens(self, value: Any, owner: str) -> Tensor:
        found = as_tensor(list(self.encode(value)) if isinstance(value, str) else value, owner)
        if not found.numel():
            return torch.zeros(0, dtype=torch.int64)
        if found.ndim != 1 or found.is_floating_point() or found.min() < 0:
            raise DataError(
                f"{owner} is no sequence of tokens: shape {tuple(found.shape)}, type {found.dtype}, smallest "
                f"{found.min().item():g}.",
                "Give a list of whole numbers from 0.",
            )
        return found.detach().to(device="cpu", dtype=torch.int64)

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.ndim != _LOGITS_NDIM:
            raise ModelError(
                f"Outputs have shape {tuple(outputs.shape)}, where logits (batch, positions, vocabulary) are expected.",
                "Return logits from outputs.",
            )
        if (targets >= outputs.shape[2]).any():
            raise DataError(
                f"A target is token {targets.max().item()}, but the model has {outputs.shape[2]} (from 0).",
                "Use the tokeniser the model was built for.",
            )


def _counts_positions(model: nn.Module) -> bool:
    """Whether the model is one of transformers, which take given positions for several texts packed into one row.

    Looking for where each of them begins costs them time, and torch.func the way through (transformers 5).
    """
    bases = {f"{base.__module__}.{base.__qualname__}" for base in type(model).__mro__}
    return "transformers.modeling_utils.PreTrainedModel" in bases
