"""Mutants by mutmut, drawn by a seed so that the same ones come up wherever their function has moved.

A mutant is known by the qualified name of its function, by what is replaced and by what (whitespace aside), and by the
how-manieth such place in the function it is. Neither path nor line count, so a function that moves keeps its mutants.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import Mutation, create_mutations, deep_replace


@dataclass(frozen=True)
class Mutant:
    """One change of one file: `path` relative to the tree, `lines` those of the statement that is changed."""

    area: str
    path: str
    function: str
    before: str
    after: str
    number: int
    lines: range
    body: range
    mutation: Mutation
    module: cst.Module

    @cached_property
    def identity(self) -> str:
        """Eight bytes, hexadecimal."""
        return _digest(self.function, self.before, self.after, str(self.number))[:16]

    @cached_property
    def source(self) -> str | None:
        """The whole file with the change; None where that is no Python."""
        changed = deep_replace(self.module, self.mutation.original_node, self.mutation.mutated_node)
        assert isinstance(changed, cst.Module)
        try:
            compile(changed.code, self.path, "exec", dont_inherit=True)
        except SyntaxError:
            return None
        return changed.code


def drawn(tree: Path, areas: Mapping[str, Sequence[str]], count: int, seed: int) -> list[Mutant]:
    """`count` mutants, as many of each area as of the others as far as there are; at most one for each place.

    Raises:
        SystemExit: a file that an area names is not there.
    """
    by_area = {area: _ranked(tree, area, paths, seed) for area, paths in areas.items()}
    left = count
    chosen: list[Mutant] = []
    for position, (_, ranked) in enumerate(sorted(by_area.items(), key=lambda item: len(item[1]))):
        share = min(len(ranked), left // (len(by_area) - position))
        chosen += islice((mutant for mutant in ranked if mutant.source is not None), share)
        left -= share
    return chosen


def _ranked(tree: Path, area: str, paths: Sequence[str], seed: int) -> list[Mutant]:
    by_place: dict[int, Mutant] = {}
    for path in paths:
        if not (tree / path).is_file():
            raise SystemExit(f"{path} of area {area} is not there. Name its files anew in benchmarks/mutants.toml.")
        for mutant in _mutants(tree, area, path):
            place = id(mutant.mutation.original_node)
            best = by_place.get(place)
            if best is None or _rank(mutant, seed) < _rank(best, seed):
                by_place[place] = mutant
    return sorted(by_place.values(), key=lambda mutant: _rank(mutant, seed))


def _rank(mutant: Mutant, seed: int) -> str:
    return _digest(str(seed), mutant.identity)


def _mutants(tree: Path, area: str, path: str) -> Iterator[Mutant]:
    """Every mutant of a file, but of what an error says and of sentences: tests need not hold every word."""
    module, mutations, _, _ = create_mutations(path, (tree / path).read_text("utf-8"))
    functions = {node: name for name, node in _functions(module.body)}
    positions = MetadataWrapper(module, unsafe_skip_copy=True).resolve(PositionProvider)
    statements = _statements(module, positions)
    wording = {id(node) for saying in _walk(module) if _is_wording(saying) for node in _walk(saying)}
    seen: Counter[tuple[str, str, str]] = Counter()
    for mutation in mutations:
        function = mutation.contained_by_top_level_function
        if function is None or function not in functions or id(mutation.original_node) in wording:
            continue
        key = functions[function], _text(module, mutation.original_node), _text(module, mutation.mutated_node)
        seen[key] += 1
        whole = positions[function]
        body = range(positions[function.body].start.line, whole.end.line + 1)
        lines = statements.get(id(mutation.original_node), body)
        yield Mutant(area, path, *key, seen[key], lines, body, mutation, module)


def _functions(body: Sequence[cst.CSTNode], inside: str = "") -> Iterator[tuple[str, cst.FunctionDef]]:
    for node in body:
        if isinstance(node, cst.FunctionDef):
            yield inside + node.name.value, node
        elif isinstance(node, cst.ClassDef):
            yield from _functions(node.body.body, f"{inside}{node.name.value}.")


def _statements(module: cst.Module, positions: Mapping[cst.CSTNode, CodeRange]) -> dict[int, range]:
    """The lines of the smallest statement around each node of a function's body; of a compound one, its head."""
    lines: dict[int, range] = {}

    def visit(node: cst.CSTNode, around: range | None) -> None:
        if isinstance(node, cst.FunctionDef):
            around = None  # what stands in its head runs when it is defined
        elif isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            first, last = positions[node].start.line, positions[node].end.line
            if isinstance(node, cst.BaseCompoundStatement):
                last = max(first, positions[node.body].start.line - 1)
            around = range(first, last + 1)
        if around is not None:
            lines[id(node)] = around
        for child in node.children:
            visit(child, around)

    visit(module, None)
    return lines


def _is_wording(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Raise) or (isinstance(node, cst.SimpleString) and " " in node.value)


def _walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _text(module: cst.Module, node: cst.CSTNode) -> str:
    return " ".join(module.code_for_node(node).split())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
