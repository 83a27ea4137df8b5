"""The control page as Prometheus metrics: names, units and help from ``schema``.

Only what the page holds is rendered, so a scrape costs the hot stages nothing and works after
their death.  Here, and only here, ns become seconds and parts ratios.  Histogram buckets are
powers of two of nanoseconds, which are bounds of the page's finer buckets, so no count is ever
split.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from hftpipe import _clock, _control, schema
from hftpipe._control import Control, Histogram
from hftpipe.schema import PAGE_METRICS

BOUNDS = tuple((1 << power) - 1 for power in range(6, 35))      # 63 ns to 17 s


def buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative counts at :data:`BOUNDS` in seconds, as Prometheus wants them."""
    fine = histogram.buckets()
    out: list[tuple[str, float]] = []
    at = total = 0
    for bound in BOUNDS:
        while at < len(fine) and fine[at][0] <= bound:
            total += fine[at][1]
            at += 1
        out.append((repr(bound / 10**9), total))
    out.append(("+Inf", histogram.count))
    return out


class PageCollector(Collector):
    """Renders the control page that *attach* returns at each scrape."""

    def __init__(self, attach: Callable[[], Control]) -> None:
        self._attach = attach

    def describe(self) -> Iterable[Metric]:
        return []                       # names are known only with a page; nothing to check

    def collect(self) -> Iterable[Metric]:
        control = self._attach()
        stages = [s for s in control.stages if s.state != _control.VOID]
        known = set(control.counter_names)
        for metric in schema.METRICS:
            if metric.name not in known:
                continue                # a page of another version
            name = metric.prometheus
            family = (CounterMetricFamily(name, metric.doc, labels=["stage"])
                      if metric.kind == "counter"
                      else GaugeMetricFamily(name, metric.doc, labels=["stage"]))
            for stage in stages:
                family.add_metric([stage.name], metric.exported(stage.counter(metric.name)))
            yield family
        for metric in schema.HISTOGRAMS:
            if metric.name not in control.histogram_names:
                continue
            histograms = HistogramMetricFamily(metric.prometheus, metric.doc, labels=["stage"])
            for stage in stages:
                found = stage.histogram(metric.name)
                if found.count:
                    histograms.add_metric([stage.name], buckets(found),
                                          metric.exported(found.sum))
            yield histograms
        strategies = control.strategies
        for metric in schema.STRATEGY_METRICS:
            if metric.name not in control.figure_names:
                continue
            name = metric.prometheus
            if metric.name == "strategy_model":     # 64 bits do not fit a sample: it is a label
                family = GaugeMetricFamily(name, metric.doc, labels=metric.labels)
                for label, figures in strategies.items():
                    family.add_metric([label, f"{figures[metric.name] or 0:016x}"], 1)
                yield family
                continue
            family = (CounterMetricFamily(name, metric.doc, labels=["strategy"])
                      if metric.kind == "counter"
                      else GaugeMetricFamily(name, metric.doc, labels=["strategy"]))
            for label, figures in strategies.items():
                value = figures[metric.name]
                if value is not None:               # not known yet
                    family.add_metric([label], metric.exported(value))
            yield family
        yield from self._page(control)

    def _page(self, control: Control) -> Iterable[Metric]:
        """What belongs to the run or to every stage."""
        now = _clock.now_ns()
        family = {m.name: GaugeMetricFamily(m.prometheus, m.doc, labels=m.labels)
                  for m in PAGE_METRICS}
        unit = {m.name: m.exported for m in PAGE_METRICS}
        family["armed"].add_metric([], int(control.armed))
        family["halt_epoch"].add_metric([], control.halt_epoch)
        family["started"].add_metric([], unit["started"](control.started))
        for stage in control.stages:
            if stage.state == _control.VOID:
                continue
            family["stage_up"].add_metric([stage.name], int(stage.state == _control.RUNNING))
            family["heartbeat_age"].add_metric(
                [stage.name], unit["heartbeat_age"](max(now - stage.heartbeat, 0)))
            family["store_full"].add_metric([stage.name], int(stage.store_full))
        yield from family.values()


def registry(attach: Callable[[], Control]) -> CollectorRegistry:
    """A registry with nothing but the page of *attach*."""
    made = CollectorRegistry(auto_describe=False)
    made.register(PageCollector(attach))
    return made
