"""Folders of Hugging Face, and networks of transformers, by the name of their task: all that a `Task` needs.

A task is a line of the table in `kinds`: the class of transformers that makes the network, how samples become inputs,
what an answer is. `folder` finds the network and its processor on this disk, `rows` reads what the user has as data.
"""

from lilliput.pretrained.kinds import KINDS, kind_called
from lilliput.pretrained.made import fields_of

__all__ = ["KINDS", "fields_of", "kind_called"]
