"""What a recipe would do, for a dry run: nothing is searched, rounded by what flows, trained, built or timed."""

from __future__ import annotations

from dataclasses import dataclass, field

from lilliput.techniques.run import Answer, Rough


@dataclass
class Plan:
    """What it takes, and what only doing it tells."""

    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    undecided: dict[str, str] = field(default_factory=dict)  # by step, what is not among the layers, and why
    apart: list[str] = field(default_factory=list)  # steps of which some time is not known
    step: str = ""  # that is planned

    def taken(self, rough: Rough) -> Answer:
        """The answer that stands for the true one, its seconds counted."""
        if rough.seconds is None:
            self.takes_more()
        else:
            self.seconds[rough.stage] = self.seconds.get(rough.stage, 0.0) + rough.seconds
        return rough.answer

    def takes_more(self) -> None:
        if self.step not in self.apart:
            self.apart.append(self.step)
