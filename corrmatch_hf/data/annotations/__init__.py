"""What annotation tools export: read as photos and masks of class ids, and written as polygons to correct by hand.

detect(folder)      the name of the format, or None
READERS[name]       a reader: Files -> Annotations (see `form.py`), imported when needed
draw, write_folder  Annotations -> masks -> a folder in our plain layout
outlines            mask -> polygons, written by `save.py`
"""

from .detect import FORMATS, detect

__all__ = ["FORMATS", "detect"]
