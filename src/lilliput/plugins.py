"""What takes part in training: `Finetune(plugins=…)`. Your own: a subclass of `Plugin`."""

from __future__ import annotations

from lilliput.techniques.gradual import Gradual
from lilliput.techniques.group_lasso import GroupLasso
from lilliput.techniques.l2sp import L2SP
from lilliput.techniques.plugin import Moment, Plugin

__all__ = ["L2SP", "Gradual", "GroupLasso", "Moment", "Plugin"]
