"""What each operator computes, as functions of tensors and attributes."""

from lilliput.importers.operators import elementwise as elementwise
from lilliput.importers.operators import images as images
from lilliput.importers.operators import indexing as indexing
from lilliput.importers.operators import integers as integers
from lilliput.importers.operators import reducing as reducing
from lilliput.importers.operators import resizing as resizing
from lilliput.importers.operators import shapes as shapes
