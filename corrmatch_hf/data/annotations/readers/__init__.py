"""One reader for each annotation format: Files -> Annotations. The formats' names and `detect` are in `detect.py`."""

from . import coco, cvat, label_studio, labelme, masks, supervisely, via, yolo

READERS = {
    "coco": coco.read,
    "labelme": labelme.read,
    "voc_masks": masks.read_voc,
    "roboflow_masks": masks.read_roboflow,
    "yolo": yolo.read,
    "cvat": cvat.read,
    "label_studio": label_studio.read,
    "supervisely": supervisely.read,
    "via": via.read,
}
