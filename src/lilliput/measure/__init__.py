"""Size, latency, cost and closeness, each with the interval and the conditions that make it evidence."""

from lilliput.measure.cost import Cost, macs, parameters
from lilliput.measure.distance import Distance, DistanceSoFar, as_rows, furthest, places
from lilliput.measure.environment import Cpu, cpu, environment
from lilliput.measure.files import artifact
from lilliput.measure.kinds import KINDS, Kind, misfit
from lilliput.measure.latency import Clocks, Distant, Latencies, interleaved, others_seconds
from lilliput.measure.measurement import Measurement
from lilliput.measure.noise import Noise, decibels
from lilliput.measure.statistics import mean, median, median_ratio, paired_difference

__all__ = [
    "KINDS",
    "Clocks",
    "Cost",
    "Cpu",
    "Distance",
    "DistanceSoFar",
    "Distant",
    "Kind",
    "Latencies",
    "Measurement",
    "Noise",
    "artifact",
    "as_rows",
    "cpu",
    "decibels",
    "environment",
    "furthest",
    "interleaved",
    "macs",
    "mean",
    "median",
    "median_ratio",
    "misfit",
    "others_seconds",
    "paired_difference",
    "parameters",
    "places",
]
