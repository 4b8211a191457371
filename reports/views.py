"""How a report is read: which finding comes first, which output opens, how the path to the checkpoint is drawn."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from gradtrail.nouns import SEVERITIES, Finding, Preview, PreviewMode, Severity
from gradtrail.reports.charts.groups import GroupChart, GroupFigure, group_figure, weight_chart
from gradtrail.reports.charts.lineage_graph import Drawing, drawing_of_output
from gradtrail.reports.charts.shares import ShareFigure, reading_order, share_figures
from gradtrail.reports.model import AuditReport, ExampleCard, LineageStep, OutputSection
from gradtrail.reports.previews import Gallery, Picture, apply_mode, shown_answer, shown_reason

_OPEN_OUTPUTS = 3
_WHOLE_OUTPUTS = 100
"""Outputs that the page shows with all their evidence, 25 KB each; of the others it has a line."""
_MOST_ROWS_OF_OUTPUT = 5
_MOST_GROUPS_OF_OUTPUT = 12
_STATIONS = {
    "output": "Output",
    "example": "Examples",
    "source": "Source",
    "licence": "Licence",
    "dataset_version": "Dataset version",
    "run": "Training run",
    "checkpoint": "Checkpoint",
}
_SEVERITY_OF_WRONG = SEVERITIES.index("low")


@dataclass(frozen=True)
class ShownPreview:
    """A preview after the report's mode was applied, with its picture ready where it is one."""

    kind: str
    text: str
    row: tuple[tuple[str, str], ...]
    picture: Picture | None


@dataclass(frozen=True)
class ShownCard:
    """A card and what may be shown of its example."""

    card: ExampleCard
    attributes: tuple[tuple[str, str], ...]
    preview: ShownPreview | None


@dataclass(frozen=True)
class FindingGroup:
    """All findings of one rule and severity."""

    rule: str
    severity: Severity
    findings: tuple[Finding, ...]

    @property
    def title(self) -> str:
        """The rule's name in words."""
        return self.rule.replace("-", " ").replace("_", " ")


@dataclass(frozen=True)
class Station:
    """Neighbouring lineage steps of one kind, as one stop on the path."""

    title: str
    steps: tuple[LineageStep, ...]


@dataclass(frozen=True)
class ShownOutput:
    """One output in reading order. `number` starts at 1; findings name it."""

    number: int
    section: OutputSection
    prediction: str
    true_label: str | None
    preview: ShownPreview | None
    proponents: tuple[ShownCard, ...]
    opponents: tuple[ShownCard, ...]
    figures: tuple[ShareFigure, ...]
    groups: GroupFigure | None
    stations: tuple[Station, ...]
    drawing: Drawing | None
    worst: Severity | None
    is_open: bool


@dataclass(frozen=True)
class BriefOutput:
    """An output that the page has a line of; the JSON file and the Parquet file beside it have the rest."""

    number: int
    section: OutputSection
    prediction: str
    true_label: str | None
    worst: Severity | None


@dataclass(frozen=True)
class ReportView:
    """A report prepared for the template."""

    report: AuditReport
    severity_counts: tuple[tuple[Severity, int], ...]
    finding_groups: tuple[FindingGroup, ...]
    output_numbers: dict[str, int]
    figures: tuple[ShareFigure, ...]
    groups: GroupFigure | None
    weights: GroupChart | None
    proponents: tuple[ShownCard, ...]
    opponents: tuple[ShownCard, ...]
    outputs: tuple[ShownOutput, ...]
    brief: tuple[BriefOutput, ...]
    pictures: tuple[Picture, ...]
    named_examples: tuple[ExampleCard, ...]
    quarantined_examples: tuple[tuple[str, str], ...]
    quarantined_outputs: tuple[tuple[str, str], ...]
    explain_command: str
    prove_command: str
    wrong: int
    known_labels: int
    indicative: bool


def view_of(report: AuditReport) -> ReportView:
    """Order, group and redact a report.

    Raises:
        DataError: a preview that is not a readable PNG.
    """
    ordered = list(enumerate(_in_reading_order(report.outputs), 1))
    eye = _Eye(report.preview_mode)
    proponents, opponents = eye.cards(report.overall.proponents), eye.cards(report.overall.opponents)
    outputs = tuple(eye.output(number, section) for number, section in ordered[:_WHOLE_OUTPUTS])
    brief = tuple(
        BriefOutput(number, section, *eye.answers(section), _worst(section.findings))
        for number, section in ordered[_WHOLE_OUTPUTS:]
    )
    numbers = {section.output.output_id: number for number, section in ordered}
    by_severity = Counter(finding.severity for finding in report.findings)
    first = outputs[0].section.output if outputs else None
    named = {card.example_id: card for card in _cards_on_the_page(report, outputs, brief)}
    return ReportView(
        report=report,
        severity_counts=tuple((severity, by_severity[severity]) for severity in SEVERITIES if by_severity[severity]),
        finding_groups=_groups(report.findings, numbers),
        output_numbers=numbers,
        figures=share_figures(report.overall.shares),
        groups=group_figure(report.overall.groups),
        weights=weight_chart(report.trust.weighting.group_weights, [each.group for each in report.overall.groups]),
        proponents=proponents,
        opponents=opponents,
        outputs=outputs,
        brief=brief,
        pictures=eye.gallery.pictures(),
        named_examples=tuple(named[example_id] for example_id in sorted(named)),
        quarantined_examples=_shown_reasons(report, report.trust.coverage.quarantined),
        quarantined_outputs=_shown_reasons(report, report.trust.quarantined_outputs),
        explain_command=f"gradtrail explain {shlex.quote(first.output_id)}" if first else "gradtrail explain OUTPUT",
        prove_command=f"gradtrail verify --output {shlex.quote(first.output_id) if first else 'OUTPUT'} --json",
        wrong=sum(section.wrong for section in report.outputs),
        known_labels=sum(section.judged for section in report.outputs),
        indicative=any(finding.evidence.get("kind") == "fidelity_below" for finding in report.findings),
    )


def _cards_on_the_page(
    report: AuditReport, outputs: Sequence[ShownOutput], brief: Sequence[BriefOutput]
) -> Iterator[ExampleCard]:
    yield from report.overall.proponents
    yield from report.overall.opponents
    for shown in outputs:
        yield from shown.section.proponents
        yield from shown.section.opponents
    for line in brief:
        yield from line.section.proponents[:1]


def _in_reading_order(sections: Sequence[OutputSection]) -> list[OutputSection]:
    """Findings and wrong predictions first, the most severe at the top; else as they came."""

    def attention(section: OutputSection) -> tuple[int, bool]:
        severities = [SEVERITIES.index(finding.severity) for finding in section.findings]
        if section.wrong or section.result.reproduced is False:
            severities.append(_SEVERITY_OF_WRONG)
        return min(severities, default=len(SEVERITIES)), not section.wrong

    return sorted(sections, key=attention)


def _groups(findings: Sequence[Finding], output_numbers: Mapping[str, int]) -> tuple[FindingGroup, ...]:
    def place(finding: Finding) -> tuple[int, str]:
        return SEVERITIES.index(finding.severity), finding.rule

    by_output = sorted(findings, key=lambda finding: output_numbers.get(finding.output_id or "", 0))
    groups = groupby(sorted(by_output, key=place), key=place)
    return tuple(FindingGroup(rule, SEVERITIES[severity], tuple(group)) for (severity, rule), group in groups)


class _Eye:
    """What may be shown under a preview mode; the same example looks the same wherever it stands."""

    def __init__(self, mode: PreviewMode) -> None:
        self.mode = mode
        self.gallery = Gallery()
        self._attributes: dict[int, tuple[tuple[str, str], ...]] = {}

    def output(self, number: int, section: OutputSection) -> ShownOutput:
        stations = groupby(section.lineage, key=lambda step: step.kind)
        prediction, true_label = self.answers(section)
        return ShownOutput(
            number=number,
            section=section,
            prediction=prediction,
            true_label=true_label,
            preview=self.preview(section.preview),
            proponents=self.cards(section.proponents),
            opponents=self.cards(section.opponents),
            figures=share_figures(section.shares, _MOST_ROWS_OF_OUTPUT),
            groups=group_figure(section.groups, _MOST_GROUPS_OF_OUTPUT),
            stations=tuple(
                Station(_STATIONS.get(kind, kind.replace("_", " ")), tuple(steps)) for kind, steps in stations
            ),
            drawing=drawing_of_output(section),
            worst=_worst(section.findings),
            is_open=number <= _OPEN_OUTPUTS,
        )

    def answers(self, section: OutputSection) -> tuple[str, str | None]:
        """What the model said and what is true, as far as either may be shown."""
        label = section.true_label
        said = shown_answer(section.result.prediction, self.mode)
        return said, None if label is None else shown_answer(label, self.mode)

    def cards(self, cards: Sequence[ExampleCard]) -> tuple[ShownCard, ...]:
        return tuple(ShownCard(card, self._sorted(card), self.preview(card.preview)) for card in cards)

    def preview(self, preview: Preview | None) -> ShownPreview | None:
        shown = apply_mode(preview, self.mode)
        if shown is None:
            return None
        picture = self.gallery.picture(shown.png) if shown.kind == "image" else None
        return ShownPreview(shown.kind, shown.text, tuple(shown.row.items()), picture)

    def _sorted(self, card: ExampleCard) -> tuple[tuple[str, str], ...]:
        # Cards of one example share its attributes.
        place = id(card.attributes)
        if place not in self._attributes:
            names = sorted(card.attributes, key=reading_order)
            self._attributes[place] = tuple((name, card.attributes[name]) for name in names)
        return self._attributes[place]


def _shown_reasons(report: AuditReport, reasons: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, shown_reason(reasons[name], report.preview_mode)) for name in sorted(reasons))


def _worst(findings: Sequence[Finding]) -> Severity | None:
    return SEVERITIES[min(SEVERITIES.index(finding.severity) for finding in findings)] if findings else None
