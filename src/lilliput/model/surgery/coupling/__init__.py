"""What can only be removed together, and removing it.

`atoms` are the positions of axes, `flow` follows them through a captured graph by the `rules` of its operators,
`groups` are what is found; `shrinking` turns a choice of slices into edits, checked against the network with them
`masked`.
"""

from lilliput.model.surgery.coupling.flow import ENCODED
from lilliput.model.surgery.coupling.groups import Coupling, Group, Member, coupling
from lilliput.model.surgery.coupling.shrinking import Shrinking

__all__ = ["ENCODED", "Coupling", "Group", "Member", "Shrinking", "coupling"]
