"""A diagnosis as text, and as one page with plots."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path

from glci_dist.data.foreign import refuse_foreign_report
from glci_dist.diagnosis.states import DOMINATING_ACCURACY, NO_CONTEST_RATIO, State, ratios
from glci_dist.diagnosis.tensorboard_reader import Point
from glci_dist.diagnosis.timeline import StateSpan, main_span
from glci_dist.errors import make_folder

COLOURS = {
    State.HEALTHY: "#dff0d8",
    State.DOMINATES: "#f8d7a8",
    State.ASLEEP: "#d6d6e8",
    State.NO_CONTEST: "#d0e4f2",
    State.CHECKERBOARD: "#e8d2ec",
    State.COLLAPSE: "#f3c6c6",
    State.DIVERGING: "#ee9f9f",
}

Contest = tuple[Sequence[Point], Sequence[StateSpan]]
"""A contest's points in a log, and what they were diagnosed to be."""

_PLOTS = (
    ("adversarial losses", ("loss/adversarial", "loss/real", "loss/completed"), None, False),
    ("reconstruction error", ("loss/reconstruction",), None, True),
    ("discriminator accuracy", ("accuracy/real", "accuracy/completed"), DOMINATING_ACCURACY, False),
    (
        "adversarial gradient at the output, over the reconstruction gradient",
        ("gradient_ratio",),
        NO_CONTEST_RATIO,
        True,
    ),
    ("logit gap, real minus completed", ("contest/margin",), None, False),
    ("difference between two completions, over that between photos", ("diversity",), None, False),
    ("checkerboard energy of the upsampling layers, over the photos'", ("checkerboard",), None, True),
    ("share of the adversarial gradient in the hole", ("contest/hole_share",), None, False),
    ("batch norm: batch means minus running means, in standard deviations", ("contest/batch_norm_gap",), None, False),
)
"""Title, scalars, limit, whether the axis is logarithmic."""


def as_text(source: Path, contests: Sequence[Contest], recorded: Sequence[str] = ()) -> str:
    """The diagnosis of each contest of a log in a few lines, and the run's own diagnoses (``recorded``)."""
    lines = []
    for points, spans in contests:
        lines.append(f"{source}: adversarial training, steps {points[0].step} to {points[-1].step}")
        if not spans:
            lines += ["  too short for a diagnosis: it needs six points; lower monitor.scalars_every", ""]
            continue
        first = main_span(spans)
        lines += [f"  {first.finding.state}", *(f"    {each}" for each in first.finding.evidence)]
        lines += [f"    what to change: {first.finding.advice}", ""]
        lines += [f"  steps {each.first:>6} to {each.last:>6}  {each.finding.state}" for each in spans]
        lines.append("")
    if recorded:
        lines += [_RECORDED, *(f"  {line}" for line in recorded), ""]
    return "\n".join(lines)


def write_report(
    folder: Path, text: str, source: Path, contests: Sequence[Contest], recorded: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Write the diagnosis into ``folder``: ``text`` (of ``as_text``), and a page; returns both paths.

    Raises UserError if it would overwrite another program's file, or cannot write.
    """
    page, plain = folder / "diagnosis.html", folder / "diagnosis.txt"
    refuse_foreign_report("diagnosis", _HEAD.encode(), page, plain)
    make_folder(folder, "--out")
    page.write_text(_HEAD + _PAGE.format(body=_body(source, contests, recorded)), encoding="utf-8")
    plain.write_text(text + "\n", encoding="utf-8")
    return plain, page


def _body(source: Path, contests: Sequence[Contest], recorded: Sequence[str]) -> str:
    """The same in HTML, with plots over coloured states."""
    parts = [f"<h1>Adversarial training of {html.escape(str(source))}</h1>"]
    for points, spans in contests:
        parts.append(f"<h2>Steps {points[0].step} to {points[-1].step}</h2>")
        if not spans:
            parts.append("<p>Too short for a diagnosis: it needs six points; lower monitor.scalars_every.</p>")
            continue
        first = main_span(spans)
        evidence = "".join(f"<li>{html.escape(each)}</li>" for each in first.finding.evidence)
        parts.append(
            f'<p class="verdict" style="background:{COLOURS[first.finding.state]}"><b>{first.finding.state}</b></p>'
            f"<ul>{evidence}</ul><p>What to change: {html.escape(first.finding.advice)}.</p>"
        )
        rows = "".join(
            f'<tr style="background:{COLOURS[each.finding.state]}"><td>{each.first} to {each.last}</td>'
            f"<td>{each.finding.state}</td><td>{html.escape('; '.join(each.finding.evidence))}</td></tr>"
            for each in spans
        )
        parts.append(f"<table><tr><th>steps</th><th>state</th><th>at its end</th></tr>{rows}</table>")
        parts.append(_plots(points, spans))
    if recorded:
        parts.append(f"<h2>{_RECORDED}</h2><ul>{''.join(f'<li>{html.escape(line)}</li>' for line in recorded)}</ul>")
    return "\n".join(parts)


_RECORDED = "What the run said while it trained"
_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Diagnosis</title>
"""
_PAGE = """<style>
body {{ font: 15px/1.5 sans-serif; max-width: 62em; margin: 2em auto; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .2em .8em; text-align: left; border: 1px solid #ccc }}
.verdict {{ padding: .5em 1em; font-size: 1.2em }} svg {{ max-width: 100%; height: auto }}
</style>
{body}
</html>
"""


def _plots(points: Sequence[Point], spans: Sequence[StateSpan]) -> str:
    """The plots for which the log has scalars, as one SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = [(point.step, {**point.scalars, **ratios(point.scalars)}) for point in points]
    chosen = [plot for plot in _PLOTS if any(name in scalars for _, scalars in rows for name in plot[1])]
    figure, axes = pyplot.subplots(len(chosen), 1, figsize=(9, 2.2 * len(chosen)), sharex=True, squeeze=False)
    for axis, (title, names, limit, is_logarithmic) in zip(axes[:, 0], chosen, strict=True):
        for span in spans:
            if span.finding.state != State.HEALTHY:
                axis.axvspan(span.first, span.last, color=COLOURS[span.finding.state], alpha=0.6, lw=0)
        for name in names:
            shown = [(step, scalars[name]) for step, scalars in rows if name in scalars]
            if shown:
                axis.plot(*zip(*shown, strict=True), label=name, lw=1.2)
        if limit is not None:
            axis.axhline(limit, color="#888", lw=0.8, ls="--")
        if is_logarithmic and all(scalars.get(name, 1) > 0 for _, scalars in rows for name in names):
            axis.set_yscale("log")
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        if len(names) > 1:
            axis.legend(fontsize=7, loc="best")
    axes[-1, 0].set_xlabel("step", fontsize=8)
    figure.tight_layout()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    pyplot.close(figure)
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
