"""What the GPU benchmark measured, and how it is shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from headrace_bench import machine
from headrace_bench.geometry import Geometry
from headrace_bench.gpu.texts import Shapes
from headrace_bench.library import REMEDY
from headrace_bench.results import Outcome, Way
from headrace_bench.stats import Spread, pairwise, spread

TORCH = "sentence-transformers"
BUSY_ENOUGH = 95.0  # percent


@dataclass(slots=True, kw_only=True)
class Measured:
    """One geometry; lists have one item a repetition.

    Attributes:
        geometry: the encoder's size.
        engine: what computed, and its version.
        engine_reason: why that.
        precision: what it computed in; sentence-transformers, too.
        shapes: rows and batches.
        warm_up: headrace's report of the first pass, with the transport that ``auto`` takes.
        reports: headrace's reports by the transport that was asked for, with ``wall_seconds`` and
            ``gpu_busy``.
        missing: why a transport was not measured.
        products: FLOP/s of the matrix product.
        product_missing: why it was not measured, or "".
        torch_rates: rows a second of sentence-transformers.
        torch_busy: GPU busy meanwhile, percent, or None.
        torch_rows: rows that it embedded, evenly spread.
        torch_batch: its batch size.
        batch_search: its rows a second by batch size.
        torch_missing: why it was not measured, or "".
        cosines: smallest cosine to the first pass, see :func:`headrace_bench.gpu.ways.compared`, by
            way.
        wrong: what is wrong with the vectors, one sentence each.
    """

    geometry: Geometry
    engine: str
    engine_reason: str
    precision: str
    shapes: Shapes
    warm_up: dict[str, Any] = field(default_factory=dict)
    reports: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    products: list[float] = field(default_factory=list)
    product_missing: str = ""
    torch_rates: list[float] = field(default_factory=list)
    torch_busy: list[float | None] = field(default_factory=list)
    torch_rows: int = 0
    torch_batch: int = 0
    batch_search: dict[int, float] = field(default_factory=dict)
    torch_missing: str = ""
    cosines: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def flops(self) -> int:
        """Floating-point operations of one run."""
        return self.geometry.flops(self.shapes.padded, self.shapes.squares)

    def rates(self, way: str) -> list[float]:
        """Returns rows a second of a transport, file to file, or of sentence-transformers."""
        if way == TORCH:
            return self.torch_rates
        return [report["rows"] / report["seconds"] for report in self.reports[way]]

    def per_second(self, way: str, amount: float) -> Spread:
        """Returns how many a second a transport did of something that a run has ``amount`` of."""
        return spread([amount / report["seconds"] for report in self.reports[way]])

    def share(self, way: str) -> Spread | None:
        """Returns a transport's FLOP/s over the matrix product's, repetition by repetition."""
        if not self.products:
            return None
        ours = [self.flops / report["seconds"] for report in self.reports[way]]
        return spread(pairwise(ours, self.products))

    def ratio(self, ours: str, theirs: str) -> Spread:
        """Returns how many times as fast one way is as another, repetition by repetition."""
        return spread(pairwise(self.rates(ours), self.rates(theirs)))

    def busy(self, way: str) -> Spread | None:
        """Returns how busy the GPU was, percent, or None where it was not measured."""
        if way == TORCH:
            found = self.torch_busy
        else:
            found = [report["gpu_busy"] for report in self.reports[way]]
        known = [percent for percent in found if percent is not None]
        return spread(known) if known else None

    def losses(self) -> list[str]:
        """Returns where headrace, or the transport through the GPU's memory, is the slower one."""
        found = []
        for way in self.reports:
            if self.torch_rates and (ratio := self.ratio(way, TORCH)).median < 1:
                found.append(f"{way} loses to {TORCH}: {ratio.show(2)} of its speed")
            if (busy := self.busy(way)) is not None and busy.median < BUSY_ENOUGH:
                found.append(f"{way} keeps the GPU busy for {busy.show(1)} % of the time only")
        best = next(iter(self.reports))
        found += [
            f"{best} loses to {way}: {ratio.show(2)} of its speed"
            for way in self.reports
            if way != best and (ratio := self.ratio(best, way)).median < 1
        ]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON takes it, with what follows from it."""
        shapes = self.shapes
        ways: dict[str, Any] = {}
        for way in self.reports:
            share, busy = self.share(way), self.busy(way)
            ways[way] = {
                "transport": self.reports[way][-1]["transport"],
                "transport_reason": self.reports[way][-1]["transport_reason"],
                "rows_per_second": asdict(spread(self.rates(way))),
                "tokens_per_second": asdict(self.per_second(way, shapes.tokens)),
                "padded_tokens_per_second": asdict(self.per_second(way, shapes.padded)),
                "flops_per_second": asdict(self.per_second(way, self.flops)),
                "share_of_matrix_product": asdict(share) if share else None,
                "gpu_busy_percent": asdict(busy) if busy else None,
                "ratio_to_sentence_transformers": (
                    asdict(self.ratio(way, TORCH)) if self.torch_rates else None
                ),
            }
        product = asdict(spread(self.products)) if self.products else None
        return {
            **asdict(self),
            "flops": self.flops,
            "ways": ways,
            "matrix_product_flops_per_second": product,
            "losses": self.losses(),
        }


@dataclass(slots=True)
class Result:
    """Everything.

    Attributes:
        settings: what was asked for.
        device: ``cuda`` or ``cpu``.
        gpu: what :class:`headrace_launcher.gpus.Gpu` says, and ``driver``; empty on a CPU.
        product_size: rows and columns of the matrices of the product.
        measured: one item a geometry.
        hardware: see :func:`headrace_bench.machine.hardware`.
        versions: see :func:`headrace_bench.machine.versions`.
    """

    settings: dict[str, Any]
    device: str
    gpu: dict[str, Any]
    product_size: int
    measured: list[Measured] = field(default_factory=list)
    hardware: dict[str, object] = field(default_factory=machine.hardware)
    versions: dict[str, str] = field(default_factory=machine.versions)

    @property
    def wrong(self) -> bool:
        """Whether some vectors are."""
        return any(each.wrong for each in self.measured)

    def to_outcome(self, command: str) -> Outcome:
        """Returns everything in the form that all benchmarks share; ``command`` does it again."""
        ways: dict[str, Way] = {}
        ours: list[str] = []
        losses: list[str] = []
        for each in self.measured:
            name = each.geometry.name
            wrong = "; ".join(each.wrong)
            for transport, reports in each.reports.items():
                ours.append(f"{name}, headrace, {transport}")
                ways[ours[-1]] = Way(
                    rates=each.rates(transport),
                    what=f"{each.engine} in {each.precision}, really {reports[-1]['transport']}",
                    wrong=wrong,
                )
            for transport, why in each.missing.items():
                ours.append(f"{name}, headrace, {transport}")
                ways[ours[-1]] = Way(missing=why)
            ways[f"{name}, {TORCH}"] = Way(
                rates=each.torch_rates,
                what=f"batch size {each.torch_batch}, {each.torch_rows:,} rows, in memory",
                missing=each.torch_missing,
            )
            losses += [f"{name}: {loss}" for loss in each.losses()]
        rows = [each.shapes.rows for each in self.measured]
        return Outcome(
            benchmark="gpu",
            title="On a GPU",
            command=command,
            settings=self.settings,
            texts={
                "source": "paragraphs of the docstrings of what is installed",
                "rows": max(rows, default=0),
                "tokens": {
                    "mean": sum(each.shapes.tokens for each in self.measured) / max(1, sum(rows))
                },
            },
            ways=ways,
            ours=ours,
            # Of other geometries' ways there are no ratios worth telling.
            told_losses=losses,
            notes=[
                "Models of known sizes with random weights: how fast one is does not depend on "
                "its weights. Ratios within a size stand in the printed table and the JSON.",
            ],
            details={
                "device": self.device,
                "gpu": self.gpu,
                "product_size": self.product_size,
                "geometries": {each.geometry.name: each.to_dict() for each in self.measured},
            },
            hardware=self.hardware | {"gpus": [self.gpu] if self.gpu else []},
            versions=self.versions,
        )


def show(result: Result) -> str:
    """Returns a table for each geometry, and everything that a reader needs to judge it."""
    measured = {"gpus": [result.gpu] if result.gpu else []}
    lines = machine.describe(result.hardware | measured, result.versions)
    for each in result.measured:
        lines += ["", *_show_one(each, result)]
    return "\n".join(lines)


def _show_one(each: Measured, result: Result) -> list[str]:
    shapes, first = each.shapes, each.warm_up
    low, middle, high = shapes.percentiles
    lines = [
        f"{each.geometry.name}: {each.geometry.describe()} · random weights · {each.engine} in "
        f"{each.precision} ({each.engine_reason})",
        f"  {shapes.rows:,} rows · tokens a row: mean {shapes.tokens / shapes.rows:.1f}, p5 "
        f"{low:.0f}, p50 {middle:.0f}, p95 {high:.0f} · padding "
        f"{1 - shapes.tokens / shapes.padded:.1%} · {each.flops / 1e12:,.1f} TFLOP a run",
        f"  first pass, words not known yet: {first['rows'] / first['seconds']:,.0f} rows/s; "
        f"--transport auto takes {first['transport']} ({first['transport_reason']})",
    ]
    if each.products:
        peak = spread([rate / 1e12 for rate in each.products]).show(1)
        lines.append(f"  matrix product, {result.product_size}^3, {each.precision}: {peak} TFLOP/s")
    else:
        lines.append(f"  matrix product: not measured: {each.product_missing}")
    count = result.settings["repetitions"]
    lines += [
        f"  file to file; median [least..most] of {count}, ratios pair by pair",
        f"  {'':22}{'rows/s':>26}{'tokens/s':>14}{'padded':>14}{'TFLOP/s':>10}{'of product':>12}"
        f"{'GPU busy':>10}{'times torch':>20}",
    ]
    lines += [_line_of(each, way) for way in each.reports]
    lines += [f"  headrace, {way:12}  not measured: {why}" for way, why in each.missing.items()]
    lines += _show_torch(each)
    walls = ", ".join(
        f"{way} {spread([r['rows'] / r['wall_seconds'] for r in reports]).show()}"
        for way, reports in each.reports.items()
    )
    lines.append(f"  headrace as a whole process, rows/s (the server runs already): {walls}")
    pairs = " · ".join(f"{way} {cosine:.6f}" for way, cosine in each.cosines.items())
    lines.append(f"  vectors: smallest cosine to the first pass, less the mean vector: {pairs}")
    lines += [f"  WRONG: {sentence}" for sentence in each.wrong]
    losses = each.losses()
    lines += ["  where headrace loses:", *(f"    {loss}" for loss in losses or ["nowhere"])]
    return lines


def _line_of(each: Measured, way: str) -> str:
    shapes, share, busy = each.shapes, each.share(way), each.busy(way)
    report = each.reports[way][-1]
    real = report["transport"]
    used = "" if real == way else f"  really {real}: {report['transport_reason']}"
    return (
        f"  {f'headrace, {way}':22}{spread(each.rates(way)).show():>26}"
        f"{each.per_second(way, shapes.tokens).median:>14,.0f}"
        f"{each.per_second(way, shapes.padded).median:>14,.0f}"
        f"{each.per_second(way, each.flops).median / 1e12:>10.2f}"
        f"{f'{share.median:.1%}' if share else '-':>12}"
        f"{f'{busy.median:.0f} %' if busy else '-':>10}"
        f"{each.ratio(way, TORCH).show(2) if each.torch_rates else '-':>20}"
        f"{used}{'  VECTORS WRONG' if each.wrong else ''}"
    )


def _show_torch(each: Measured) -> list[str]:
    if not each.torch_rates:
        return [f"  {TORCH:22}  not measured: {each.torch_missing}"]
    busy = each.busy(TORCH)
    tokens = spread(each.torch_rates).median * each.shapes.tokens / each.shapes.rows
    search = ", ".join(f"{size}: {rate:,.0f}" for size, rate in each.batch_search.items())
    return [
        f"  {TORCH:22}{spread(each.torch_rates).show():>26}{tokens:>14,.0f}{'-':>14}{'-':>10}"
        f"{'-':>12}{f'{busy.median:.0f} %' if busy else '-':>10}",
        f"    on {each.torch_rows:,} of the rows, evenly spread, in memory; batch size "
        f"{each.torch_batch}, the best of (rows/s) {search}",
    ]


def not_installed(error: ImportError) -> str:
    """Returns why something that needs torch was not measured, and the remedy."""
    return f"not installed ({error}); install it with: {REMEDY}"
