import sys

import numpy as np
import pytest
import torch
from torch import nn

from gradtrail import CausalLMAdapter, Example
from gradtrail.attribution.fidelity.evaluation import predicted_effects
from gradtrail.attribution.scoring.passes import overall_of_pass, score_pass, shares
from gradtrail.attribution.yardsticks.baselines import last_hidden, lexical_pass, neighbour_pass, random_pass
from gradtrail.errors import DataError, ModelError, UsageError


def _scores(scoring):
    return np.concatenate([scores for _, scores in scoring.batches()], axis=1)


def test_random_scores_are_the_same_for_a_seed_whatever_the_batches(make_examples):
    examples = make_examples(23, 12)
    found = _scores(random_pass(examples, 3, seed=4))
    assert found.shape == (3, 23)
    assert np.array_equal(_scores(random_pass(examples, 3, seed=4, batch_size=5)), found)
    assert not np.array_equal(_scores(random_pass(examples, 3, seed=5)), found)


def test_neighbours_are_compared_by_what_enters_the_last_layer(perceptron, make_examples):
    adapter, model, examples = perceptron
    queries = make_examples(4, 12, seed=9)
    model.train()
    with torch.no_grad():
        states, asked = ((model[:-1](adapter.collate(each).inputs)).double() for each in (examples, queries))
    dot = neighbour_pass(adapter, model, examples, queries, similarity="dot", batch_size=5)
    np.testing.assert_allclose(_scores(dot), (asked @ states.T).numpy(), rtol=1e-5, atol=1e-9)
    cosine = neighbour_pass(adapter, model, examples, queries, batch_size=5)
    expected = nn.functional.cosine_similarity(asked[:, None], states[None], dim=2).numpy()
    np.testing.assert_allclose(_scores(cosine), expected, rtol=1e-5, atol=1e-9)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


class Letters(CausalLMAdapter):
    def build_model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(26, 5), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 26))

    def training_data(self):
        return [Example("a", "catsat", None), Example("b", "dogran", None), Example("c", "cat", "ran")]

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]


def test_states_of_a_language_model_are_means_over_real_positions():
    adapter = Letters()
    model = adapter.build_model()
    examples = [Example("long", "abcdefgh", None), Example("short", "bcd", None)]
    found = last_hidden(adapter, model, examples)
    for row, example in enumerate(examples):
        tokens = torch.tensor(adapter.encode(example.inputs))[:-1]
        torch.testing.assert_close(found[row], model[:-1](tokens).mean(0).detach())


def test_the_last_layer_is_the_one_that_is_called_last_not_declared_last(make_classifier, make_examples):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 5)
            self.body = nn.Linear(12, 4)

        def forward(self, inputs):
            return self.head(self.body(inputs).relu())

    examples = make_examples(3, 12)
    model = Backwards()
    adapter = make_classifier(Backwards, examples)
    expected = model.body(adapter.collate(examples).inputs).relu().detach()
    torch.testing.assert_close(last_hidden(adapter, model, examples), expected)

    class Bare(nn.Module):
        def forward(self, inputs):
            return inputs[:, :5]

    with pytest.raises(ModelError, match="No layer of Bare with parameters"):
        last_hidden(adapter, Bare(), examples)
    with pytest.raises(UsageError, match="no similarity 'euclid'"):
        neighbour_pass(adapter, model, examples, examples, similarity="euclid")


TEXTS = ["the cat sat on the mat", "a dog ran off", "cat and dog", "", "rain, rain: CAT!"]


def _texts(texts, prefix="row"):
    return [Example(f"{prefix}-{i}", [0], 0, {"text": text, "source": "ab"[i % 2]}) for i, text in enumerate(texts)]


def test_words_in_common_score_by_the_formula(make_classifier):
    rows, queries = _texts(TEXTS), _texts(["cat", "the the dog", "unheard"], "query")
    adapter = make_classifier(nn.Identity, rows)
    documents = [["the", "cat", "sat", "on", "the", "mat"], ["a", "dog", "ran", "off"], ["cat", "and", "dog"], []]
    documents.append(["rain", "rain", "cat"])
    mean = np.mean([len(document) for document in documents])

    def bm25(words, document):
        total = 0.0
        for word in words:
            having = sum(word in other for other in documents)
            inverse = np.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            count = document.count(word)
            total += inverse * count / (count + 1.5 * (0.25 + 0.75 * len(document) / mean)) if count else 0
        return total

    expected = [[bm25(words, document) for document in documents] for words in (["cat"], ["the", "the", "dog"], [])]
    for size in (2, 1024):
        found = _scores(lexical_pass(adapter, rows, queries, batch_size=size))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_texts_of_a_language_model_come_from_its_previews():
    adapter = Letters()
    scoring = lexical_pass(adapter, adapter.training_data(), [Example("q", "cat", "sat")], words=list)
    assert _scores(scoring).shape == (1, 3)


def test_baselines_are_judged_and_reported_like_any_method(make_classifier):
    rows = _texts(TEXTS)
    scoring = lexical_pass(make_classifier(nn.Identity, rows), rows, _texts(["cat dog", "rain", "the mat"], "query"))
    result = score_pass(scoring, top_k=2)
    assert [top[0][0] for top in result.proponents] == ["row-2", "row-4", "row-0"]
    overall = overall_of_pass(scoring, result, top_k=2, permutations=10)
    assert {share.attribute for share in shares(result, overall, ["x", "y", "z"])} >= {"source"}
    sums = predicted_effects(scoring, [frozenset(["row-0", "row-2"]), frozenset(["row-4"])])
    np.testing.assert_allclose(sums[0], _scores(scoring)[:, [0, 2]].sum(1))


def test_what_has_no_text_and_a_missing_extra_are_named(make_classifier, make_examples, monkeypatch):
    examples = make_examples(3, 12)
    adapter = make_classifier(nn.Identity, examples)
    with pytest.raises(DataError, match="Example example-000 has no text: its preview is of kind row"):
        lexical_pass(adapter, examples, examples)
    with pytest.raises(DataError, match="None of the 2 training examples holds a word"):
        lexical_pass(adapter, _texts(["", "!"]), _texts(["cat"]))
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(UsageError, match=r"pip install 'gradtrail\[text\]'"):
        lexical_pass(adapter, _texts(TEXTS), _texts(["cat"]))
