"""Small exports in the layouts that annotation tools document, all of the same scene.

The scene, 60 x 40 pixels: a cat, the square of x and y in 5..35 with a hole in 15..25, and on top of it a smaller dog,
the square of 28..34. Photos: a.jpg and "sub dir/ü b.jpg" with it, c.jpg without annotation.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = WIDTH, HEIGHT = 60, 40
LABELED = ("a.jpg", "sub dir/ü b.jpg")
PHOTOS = (*LABELED, "c.jpg")
SQUARE = [[5, 5], [35, 5], [35, 35], [5, 35]]
# The hole is joined to the outline by a cut.
CAT = [
    [5, 5],
    [35, 5],
    [35, 35],
    [5, 35],
    [5, 20],
    [15, 20],
    [15, 25],
    [25, 25],
    [25, 15],
    [15, 15],
    [15, 20],
    [5, 20],
]
HOLE = [[15, 15], [25, 15], [25, 25], [15, 25]]
DOG = [[28, 28], [34, 28], [34, 34], [28, 34]]


def scene(cat: int = 1, dog: int = 2) -> np.ndarray:
    """(H, W) uint8."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[5:35, 5:35] = cat
    mask[15:25, 15:25] = 0
    mask[28:34, 28:34] = dog
    return mask


def write_photos(folder: Path, names=PHOTOS, size=SIZE) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def flat(points) -> list[float]:
    return [float(value) for point in points for value in point]


def runs(mask: np.ndarray, order: str = "F") -> list[int]:
    """The lengths of runs of 0 and 1 in turn."""
    values = mask.astype(bool).ravel(order=order)
    changes = np.flatnonzero(np.diff(values.astype(int), prepend=0))
    return np.diff([0, *changes, values.size]).tolist()


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def coco_content(annotations=None, names=PHOTOS) -> dict:
    """A COCO file. By default the cat as run lengths and the dog as polygon, in every photo but the last."""
    images = [
        {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names, 1)
    ]
    if annotations is None:
        counts = runs(scene(1, 1))
        annotations = []
        for image in range(1, len(names)):
            common = {"image_id": image, "iscrowd": 0}
            shape = {"size": [HEIGHT, WIDTH], "counts": counts}
            annotations.append({**common, "id": 2 * image, "category_id": 8, "segmentation": [flat(DOG)]})
            annotations.append({**common, "id": 2 * image + 1, "category_id": 3, "segmentation": shape})
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco(folder: Path) -> None:
    """CVAT's places."""
    write_photos(folder / "images" / "default")
    write_json(folder / "annotations" / "instances_default.json", coco_content())


def labelme(folder: Path) -> None:
    write_photos(folder)
    for name in LABELED:
        path = folder / name
        labelme_file(path.with_suffix(".json"), path.name, [("cat", CAT), ("dog", DOG)])


def labelme_file(path: Path, photo: str, shapes, size=SIZE) -> None:
    entries = [{"label": label, "points": points, "shape_type": "polygon"} for label, points in shapes]
    content = {"version": "5.5.0", "flags": {}, "shapes": entries, "imagePath": photo, "imageData": None}
    write_json(path, {**content, "imageWidth": size[0], "imageHeight": size[1]})


def voc_masks(folder: Path) -> None:
    write_photos(folder / "JPEGImages")
    colors = {0: (0, 0, 0), 1: (250, 50, 83), 2: (51, 221, 255)}
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:51,221,255::\n"
    )
    for name in LABELED:
        path = (folder / "SegmentationClass" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([colors[i] for i in range(3)], dtype=np.uint8)[scene()]).save(path)


def roboflow_masks(folder: Path) -> None:
    write_photos(folder / "train")
    for inner in ("", "sub dir"):
        table = "Pixel Value, Class\n0, background\n1, cat\n2, dog\n"
        (folder / "train" / inner / "_classes.csv").write_text(table)
    for name in LABELED:
        path = folder / "train" / name
        Image.fromarray(scene()).save(path.with_name(f"{path.stem}_mask.png"))


def yolo(folder: Path) -> None:
    write_photos(folder / "images" / "train")
    (folder / "data.yaml").write_text("train: images/train\nnames:\n  0: cat\n  1: dog\n")
    for name in LABELED:
        path = (folder / "labels" / "train" / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [[i, *(np.array(shape) / SIZE).ravel().tolist()] for i, shape in enumerate((CAT, DOG))]
        path.write_text("\n".join(" ".join(map(str, line)) for line in lines))


def cvat(folder: Path) -> None:
    write_photos(folder / "images")
    images = []
    for i, name in enumerate(PHOTOS):
        rle = ", ".join(map(str, runs(scene(1, 1)[5:35, 5:35], "C")))
        points = ";".join(f"{x}.0,{y}.0" for x, y in DOG)
        shapes = (
            f'<mask label="cat" rle="{rle}" left="5" top="5" width="30" height="30" z_order="0"/>'
            f'<polygon label="dog" points="{points}" z_order="1"/>'
        )
        shapes = shapes if name in LABELED else ""
        images.append(f'<image id="{i}" name="{name}" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>')
    text = f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{"".join(images)}</annotations>'
    (folder / "annotations.xml").write_text(text, encoding="utf-8")


def label_studio_runs(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths: one repeated value of 8 bits after the other, lengths of 16 bits."""
    values = np.repeat(mask.astype(np.uint8).ravel() * 255, 4)
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    starts = np.flatnonzero(np.diff(values.astype(int), prepend=-1))
    for start, end in zip(starts, [*starts[1:], values.size], strict=True):
        bits += f"1{3:02b}{end - start - 1:016b}{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def label_studio(folder: Path) -> None:
    write_photos(folder)
    common = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    brush = {"format": "rle", "rle": label_studio_runs(scene(1, 1)), "brushlabels": ["cat"]}
    outline = {"points": (np.array(DOG) / SIZE * 100).tolist(), "polygonlabels": ["dog"]}
    results = [
        {**common, "id": "x1", "type": "brushlabels", "value": brush},
        {**common, "id": "x2", "type": "polygonlabels", "value": outline},
    ]
    tasks = []
    for i, name in enumerate(PHOTOS, 1):
        done = [{"id": i, "was_cancelled": False, "result": results}] if name in LABELED else []
        address = f"/data/upload/1/0a1b2c3d-{Path(name).name}".replace(" ", "%20")
        tasks.append({"id": i, "data": {"image": address}, "annotations": done})
    write_json(folder / "project-1.json", tasks)


def supervisely(folder: Path) -> None:
    for name in PHOTOS:
        name = Path(name).name
        write_photos(folder / "ds0" / "img", [name])
        bitmap = base64.b64encode(zlib.compress(png(scene(255, 255)[28:34, 28:34]))).decode()
        objects = [
            {
                "classTitle": "cat",
                "geometryType": "polygon",
                "points": {"exterior": SQUARE, "interior": [HOLE]},
            },
            {"classTitle": "dog", "geometryType": "bitmap", "bitmap": {"data": bitmap, "origin": [28, 28]}},
        ]
        objects = [] if name == "c.jpg" else objects
        size = {"width": WIDTH, "height": HEIGHT}
        write_json(folder / "ds0" / "ann" / f"{name}.json", {"size": size, "objects": objects})
    classes = [{"title": "cat", "shape": "polygon"}, {"title": "dog", "shape": "bitmap"}]
    write_json(folder / "meta.json", {"classes": classes, "tags": []})


def via(folder: Path) -> None:
    write_photos(folder)
    entries = {}
    for name in PHOTOS:
        regions = []
        for label, shape in (("cat", CAT), ("dog", DOG)):
            xs, ys = zip(*shape, strict=True)
            outline = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
            regions.append({"shape_attributes": outline, "region_attributes": {"class": label}})
        regions = regions if name in LABELED else []
        entries[name] = {"filename": Path(name).name, "size": 1, "regions": regions, "file_attributes": {}}
    write_json(folder / "via_project.json", {"_via_settings": {}, "_via_img_metadata": entries})


EXPORTS = {
    "coco": coco,
    "labelme": labelme,
    "voc_masks": voc_masks,
    "roboflow_masks": roboflow_masks,
    "yolo": yolo,
    "cvat": cvat,
    "label_studio": label_studio,
    "supervisely": supervisely,
    "via": via,
}
